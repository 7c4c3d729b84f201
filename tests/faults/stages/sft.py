from tests.toys.sft import run as run
