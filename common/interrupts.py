"""Imported first by a script that runs: Ctrl-C while it imports its libraries, which takes seconds, ends it without a traceback.

The process then ends as its signal has it; common.program.run_script handles it from there on.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and background jobs ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
