from tests.toys.base import run as run
