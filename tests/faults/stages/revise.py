from tests.support.toys.revise import run as run
