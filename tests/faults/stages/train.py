from tests.support.toys.train import run as run
