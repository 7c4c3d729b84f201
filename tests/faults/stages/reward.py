from tests.support.toys.reward import run as run
