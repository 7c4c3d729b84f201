from tests.support.toys.refer import run as run
