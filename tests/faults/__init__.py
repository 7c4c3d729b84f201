"""Faults planted from outside, and what the command makes of each: one table, a row a fault.

A row is a `Fault` (see `planted.py`):

    Fault(
        "a label of the row nested 600 deep",  # its name, which is the test's id
        plant=nested_row,  # changes a World: files, arguments, environment
        code=2,  # 0 done, 1 counted failures past their limit, 2 refused, 75
        says=("line 3", "nested"),  # what the output must have: knobs and figures, no prose
        never=("sk-secret",),  # what neither output nor any file of the run may have
        kept=the_paid_replies,  # a last check of the World: what is still there
    )

`plant` gets a `World`: `world.folder` (the working directory), `world.words` (the command line's),
`world.environment`, `world.module` (`pipeline`; `pipeline.usage` and the like for other commands).
`hold(fault, tmp_path)` plants it, runs the real command as a process, and asserts all of the above,
and always: no traceback in the output or in any log.

To add one: write a function that plants it into the `test_*.py` of its kind (rows, replies,
functions, …; a new file for a new kind), add a `Fault` to that file's FAULTS, and run
`pytest tests/faults -k "its name"` on the old code first.
Stages come from `stages/`: real `prompts`, `sample` and `score` with the scripted backend, toys for
the rest.
What fuzzing finds becomes a row of a table. Fuzzing itself is in `test_fuzz_*.py`: short in
ordinary tests, and for `SECONDS` (in planted.py) under the marker `slow`.
"""
