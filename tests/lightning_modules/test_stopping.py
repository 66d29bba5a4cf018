import pickle
import signal

from lightning_modules.stopping import Interrupted


def test_a_stop_passes_from_one_process_to_another():
    stop = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, "stopped: continue with resume=auto")))
    assert (stop.number, stop.code, str(stop)) == (signal.SIGTERM, 143, "stopped: continue with resume=auto")
