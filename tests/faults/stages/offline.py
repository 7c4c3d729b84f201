from tests.support.toys.offline import run as run
