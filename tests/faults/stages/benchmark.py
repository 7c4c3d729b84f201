from tests.support.toys.benchmark import run as run
