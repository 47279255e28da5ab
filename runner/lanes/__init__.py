"""Where trials train: a lane is an executor with room for one trial, in a thread, a process or a Ray actor; and how
processes are stopped. Lanes train and report; they write no file and speak to no server."""
