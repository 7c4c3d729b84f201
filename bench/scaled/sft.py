from tests.support.toys.sft import run as run
