"""Exit without a traceback on Ctrl-C while a script imports its libraries, which takes seconds. Import this module first.

During imports, SIGINT has its default action; afterwards, common.program.run_script handles it.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and background jobs ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
