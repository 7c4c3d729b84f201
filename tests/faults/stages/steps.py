from tests.support.toys.steps import run as run
