from tests.toys.benchmark import run as run
