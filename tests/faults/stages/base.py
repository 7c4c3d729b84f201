from tests.support.toys.base import run as run
