from tests.support.toys.gate import run as run
