from tests.toys.reward import run as run
