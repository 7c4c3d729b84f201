from tests.support.toys.reference import run as run
