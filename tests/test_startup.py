"""The stopwatch of a start: laps, their sum, and what belongs to another start."""

import re
import subprocess
import sys
import time

from ldm_jax.training.startup import Startup, process_age


def test_laps_are_told_with_their_sum():
    startup = Startup(laps={"import": 1.25, "build": 0.5})
    assert str(startup) == "start-up 1.8 s: import 1.2 s, build 0.5 s"


def test_a_lap_is_the_time_since_the_one_before():
    startup = Startup(last=time.perf_counter() - 100)
    assert 100 <= startup.lap("build") < 110
    assert startup.lap("compile") < 10
    assert set(startup.laps) == {"build", "compile"}


def test_what_came_before_a_restart_is_forgotten():
    startup = Startup(last=time.perf_counter() - 100)
    startup.lap("import")
    startup.restart()
    assert startup.lap("build") < 10
    assert "import" not in startup.laps


def test_the_age_of_a_process_is_counted_from_its_start():
    program = (
        "import time; time.sleep(1); from ldm_jax.training.startup import Startup, process_age; "
        "s = Startup.of_process(); age = process_age(); print(s.lap('import') >= age - 0.1, 1 <= age < 60)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"True True\n", ended.stdout)
    assert process_age() > 0
