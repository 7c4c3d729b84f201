from tests.support.toys.evaluate import run as run
