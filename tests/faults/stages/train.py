from tests.toys.train import run as run
