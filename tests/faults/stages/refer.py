from tests.toys.refer import run as run
