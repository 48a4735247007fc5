def replay_dlr(data, dtype):
    yield from ()
