from tests.support.toys.pair import run as run
