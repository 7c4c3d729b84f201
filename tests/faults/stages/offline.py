from tests.toys.offline import run as run
