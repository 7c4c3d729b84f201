from tests.toys.evaluate import run as run
