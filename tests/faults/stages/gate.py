from tests.toys.gate import run as run
