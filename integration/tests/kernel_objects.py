"""The program of the kernel objects' tests: makes objects, waits while it is dumped and restored, and looks at them again.

It runs inside a container, given the names of the objects as arguments. Each object is a generator: it makes something, yields,
and then says by an assertion whether all is as it was and still works. The program prints `ready`; when the file `/tmpfs/go` is
there it prints a line `NAME ok` or `NAME failed: WHY` for each, then `done`. What Python's standard library has no call for,
kernel_objects.c does in the same manner.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback

ENOUGH_SECONDS = 5.0


def child(work) -> int:
    """A process that does `work` and stays until it is killed; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            while True:
                time.sleep(3600)
        finally:
            os._exit(1)
    return pid


def wait_for(condition, seconds: float = ENOUGH_SECONDS) -> None:
    """Waits for something that must become true soon."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it took too long"
        time.sleep(0.005)


def readable(one, seconds: float = ENOUGH_SECONDS) -> bool:
    """Whether there is something to read soon."""
    return bool(select.select([one], [], [], seconds)[0])


# === files


def file_offset():
    file = open("/offset", "w+b", buffering=0)
    file.write(b"0123456789")
    file.seek(4)
    yield
    assert file.read() == b"456789"
    file.write(b"!")
    assert os.stat("/offset").st_size == 11


def working_directory():
    os.makedirs("/deep/below", exist_ok=True)
    os.chdir("/deep/below")
    yield
    assert os.getcwd() == "/deep/below"


def deleted_file():
    file = open("/deleted", "w+b", buffering=0)
    file.write(b"kept" * 1000)
    os.unlink("/deleted")
    yield
    file.seek(0)
    assert file.read() == b"kept" * 1000
    assert not os.path.exists("/deleted")


def big_deleted_file():
    file = open("/big", "w+b", buffering=0)
    file.write(b"x" * (3 << 20))
    os.unlink("/big")
    yield
    assert os.fstat(file.fileno()).st_size == 3 << 20


def deleted_file_with_another_name():
    file = open("/first", "w+b", buffering=0)
    file.write(b"linked")
    os.link("/first", "/second")
    os.unlink("/first")
    yield
    file.seek(0)
    assert file.read() == b"linked"
    assert os.path.samestat(os.fstat(file.fileno()), os.stat("/second"))
    assert not [name for name in os.listdir("/") if "link_remap" in name], os.listdir("/")


def flock():
    file = open("/flock", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
    with open("/flock") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("it is free")
        except BlockingIOError:
            pass
    fcntl.flock(file, fcntl.LOCK_UN)


def posix_lock():
    file = open("/posix", "w+")
    file.write("0123456789")
    file.flush()
    fcntl.lockf(file, fcntl.LOCK_EX, 3, 2)
    yield
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    pid = os.fork()
    if pid == 0:
        kind, _, start, length, owner = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, lock))
        os._exit(0 if (kind, start, length, owner) == (fcntl.F_WRLCK, 2, 3, os.getppid()) else 1)
    assert os.waitpid(pid, 0)[1] == 0, "another process does not find the lock as it was"


def mounted(directory: str):
    file = open(f"{directory}/file", "w+b", buffering=0)
    file.write(b"before")
    yield
    file.write(b" and after")
    with open(f"{directory}/file", "rb") as again:
        assert again.read() == b"before and after"


def tmpfs():
    yield from mounted("/tmpfs")


def bind_mount():
    yield from mounted("/bind")


def volume():
    yield from mounted("/volume")


def fifo():
    os.mkfifo("/fifo")
    end = os.open("/fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(end, b"waiting")
    yield
    assert os.read(end, 100) == b"waiting"


# === memory


def memfd():
    memory = os.memfd_create("object", os.MFD_ALLOW_SEALING)
    os.write(memory, b"kept")
    fcntl.fcntl(memory, 1033, 0x4)  # F_ADD_SEALS, F_SEAL_GROW
    yield
    assert os.pread(memory, 4, 0) == b"kept"
    assert fcntl.fcntl(memory, 1034) == 0x4  # F_GET_SEALS


# === pipes and sockets


def pipe():
    ours, theirs = os.pipe()
    answers, answer = os.pipe()

    def echo() -> None:
        while True:
            os.write(answer, os.read(ours, 100).upper())

    pid = child(echo)
    os.write(theirs, b"one")
    assert os.read(answers, 3) == b"ONE"
    full, filler = os.pipe()
    os.write(filler, b"lying in it")
    yield
    os.write(theirs, b"two")
    assert os.read(answers, 3) == b"TWO"
    assert os.read(full, 100) == b"lying in it"
    os.kill(pid, signal.SIGKILL)


def unix_pair(kind: int):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.send(b"first")
    ours.send(b"second")
    yield
    if kind == socket.SOCK_STREAM:
        assert theirs.recv(100) == b"firstsecond"
    else:
        assert (theirs.recv(100), theirs.recv(100)) == (b"first", b"second")
    theirs.send(b"back")
    assert ours.recv(100) == b"back"


def unix_stream_pair():
    yield from unix_pair(socket.SOCK_STREAM)


def unix_datagram_pair():
    yield from unix_pair(socket.SOCK_DGRAM)


def unix_seqpacket_pair():
    yield from unix_pair(socket.SOCK_SEQPACKET)


def unix_server(kind: int, address: str):
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(address)
    listener.listen()

    def serve() -> None:
        one = socket.socket(socket.AF_UNIX, kind)
        one.connect(address)
        while True:
            one.send(one.recv(100).upper())

    pid = child(serve)
    one = listener.accept()[0]
    one.send(b"one")
    assert one.recv(100) == b"ONE"
    yield
    one.send(b"two")
    assert one.recv(100) == b"TWO"
    again = socket.socket(socket.AF_UNIX, kind)
    again.connect(address)
    listener.accept()
    os.kill(pid, signal.SIGKILL)


def unix_stream_server():
    yield from unix_server(socket.SOCK_STREAM, "/stream.sock")


def unix_seqpacket_server():
    yield from unix_server(socket.SOCK_SEQPACKET, "/seqpacket.sock")


def unix_abstract_server():
    yield from unix_server(socket.SOCK_STREAM, "\0object")


def unix_datagram_server():
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("/datagram.sock")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect("/datagram.sock")
    client.send(b"waiting")
    yield
    assert server.recv(100) == b"waiting"
    client.send(b"again")
    assert server.recv(100) == b"again"


def passed_descriptor():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reading, writing = os.pipe()
    socket.send_fds(ours, [b"x"], [writing])
    os.close(writing)
    yield
    (passed,) = socket.recv_fds(theirs, 1, 1)[1]
    os.write(passed, b"through")
    assert os.read(reading, 100) == b"through"


def udp(family: int, address: str):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.connect(server.getsockname())
    client.send(b"one")
    assert server.recvfrom(100)[0] == b"one"
    name = client.getsockname()
    yield
    client.send(b"two")
    assert readable(server)
    assert server.recvfrom(100) == (b"two", name)


def udp4():
    yield from udp(socket.AF_INET, "127.0.0.1")


def udp6():
    yield from udp(socket.AF_INET6, "::1")


def tcp(family: int, address: str):
    listener = socket.create_server((address, 0), family=family)
    client = socket.create_connection(listener.getsockname()[:2])
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = listener.accept()[0]
    client.sendall(b"lying in the queue")
    assert readable(server)
    half = socket.create_connection(listener.getsockname()[:2])
    other = listener.accept()[0]
    half.shutdown(socket.SHUT_WR)
    yield
    assert server.recv(100) == b"lying in the queue"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert other.recv(100) == b""
    other.sendall(b"still open this way")
    assert half.recv(100) == b"still open this way"
    socket.create_connection(listener.getsockname()[:2])
    listener.accept()


def tcp4():
    yield from tcp(socket.AF_INET, "127.0.0.1")


def tcp6():
    yield from tcp(socket.AF_INET6, "::1")


# === events and time


def eventfd():
    event = os.eventfd(41)
    yield
    os.eventfd_write(event, 1)
    assert os.eventfd_read(event) == 42


def epoll():
    reading, writing = os.pipe()
    poll = select.epoll()
    poll.register(reading, select.EPOLLIN)
    assert not poll.poll(0)
    yield
    os.write(writing, b"x")
    assert poll.poll(ENOUGH_SECONDS) == [(reading, select.EPOLLIN)]


def pending_signal():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)
    yield
    assert signal.sigpending() >= {signal.SIGUSR2}
    assert signal.sigtimedwait([signal.SIGUSR2], ENOUGH_SECONDS).si_pid == os.getpid()


def signal_handler():
    seen = []
    signal.signal(signal.SIGHUP, lambda *_: seen.append(1))
    yield
    os.kill(os.getpid(), signal.SIGHUP)
    wait_for(lambda: seen)


def timerfd():
    timer = os.timerfd_create(time.CLOCK_MONOTONIC)
    os.timerfd_settime(timer, initial=3600, interval=7200)
    yield
    remaining, interval = os.timerfd_gettime(timer)
    assert 3000 < remaining <= 3600 and interval == 7200, (remaining, interval)
    os.timerfd_settime(timer, initial=0.01)
    assert readable(timer)


def interval_timer():
    ticks = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    wait_for(lambda: ticks)
    yield
    n_before = len(ticks)
    wait_for(lambda: len(ticks) > n_before + 1)
    assert signal.setitimer(signal.ITIMER_REAL, 0)[1] == 0.05


# === processes


def processes():
    n_processes = 20  # the image holds each one's memory, all that it shares with the others too
    counts = os.open("/tmpfs/counts", os.O_CREAT | os.O_RDWR)

    def count(number: int):
        def work() -> None:
            n = 0
            while True:
                n += 1
                os.pwrite(counts, struct.pack("q", n), 8 * number)
                time.sleep(0.05)

        return work

    def read() -> list[int]:
        return [one for (one,) in struct.iter_unpack("q", os.pread(counts, 8 * n_processes, 0))]

    pids = [child(count(number)) for number in range(n_processes)]
    wait_for(lambda: len(read()) == n_processes and all(read()))
    yield
    before = read()
    wait_for(lambda: all(now > then for now, then in zip(read(), before)))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert sorted(os.waitpid(pid, 0)[0] for pid in pids) == sorted(pids)


def threads():
    n_threads = 100
    counts = [0] * n_threads
    ids = [0] * n_threads
    stop = threading.Event()

    def count(number: int) -> None:
        ids[number] = threading.get_native_id()
        while not stop.is_set():
            counts[number] += 1
            assert ids[number] == threading.get_native_id()
            stop.wait(0.05)

    made = [threading.Thread(target=count, args=[number], daemon=True) for number in range(n_threads)]
    for thread in made:
        thread.start()
    wait_for(lambda: all(counts))
    yield
    before = list(counts)
    wait_for(lambda: all(now > then for now, then in zip(counts, before)))
    assert set(ids) <= {int(name) for name in os.listdir("/proc/self/task")}
    stop.set()
    for thread in made:
        thread.join(ENOUGH_SECONDS)


def zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    wait_for(lambda: " Z " in open(f"/proc/{pid}/stat").read())
    yield
    assert os.waitpid(pid, 0) == (pid, 7 << 8)


def stopped_process():
    pid = child(lambda: None)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    yield
    assert " T " in open(f"/proc/{pid}/stat").read()
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: " S " in open(f"/proc/{pid}/stat").read())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def daemon():
    """A process whose parents have ended, in a session of its own whose leader has ended as well."""
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        second = os.fork()
        if second == 0:
            wait_for(lambda: os.getppid() == 1)
            while True:
                os.write(writing, struct.pack("ii", os.getpid(), os.getsid(0)))
                time.sleep(0.05)
        os._exit(0)
    os.waitpid(first, 0)
    before = os.read(reading, 8)
    yield
    while readable(reading, 0):
        os.read(reading, 8)
    assert os.read(reading, 8) == before
    os.kill(struct.unpack("ii", before)[0], signal.SIGKILL)


def process_attributes():
    niceness = os.nice(3)  # beside that of whoever runs the tests
    os.umask(0o027)
    with open("/proc/self/comm", "w") as name:
        name.write("renamed")
    limits = open("/proc/self/limits").read()
    yield
    assert os.nice(0) == niceness
    assert os.umask(0) == 0o027
    assert open("/proc/self/comm").read() == "renamed\n"
    assert open("/proc/self/limits").read() == limits


def status() -> dict[str, str]:
    return dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status"))


def security():
    """The profile, capabilities and ids."""
    names = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb", "Uid", "Gid", "Groups")
    before = {name: status()[name] for name in names}
    assert before["Seccomp"] == "2", before
    yield
    after = {name: status()[name] for name in names}
    assert before == after, (before, after)
    # What the profile refuses is refused still.
    try:
        os.unshare(os.CLONE_NEWUSER)
        raise AssertionError("unshare is allowed")
    except PermissionError:
        pass


def user_namespace():
    """A process in a user namespace of its own, made inside."""
    reading, writing = os.pipe()

    def work() -> None:
        uid = os.getuid()
        os.unshare(os.CLONE_NEWUSER)
        open("/proc/self/setgroups", "w").write("deny")
        open("/proc/self/uid_map", "w").write(f"1234 {uid} 1")
        while True:
            os.write(writing, struct.pack("i", os.getuid()))
            time.sleep(0.05)

    child(work)
    assert struct.unpack("i", os.read(reading, 4)) == (1234,)
    yield
    while readable(reading, 0):
        os.read(reading, 4)
    assert struct.unpack("i", os.read(reading, 4)) == (1234,)


def terminal():
    master, slave = os.openpty()
    assert os.isatty(slave)
    yield
    os.write(slave, b"out")
    assert os.read(master, 100) == b"out"


def main() -> None:
    """Makes, waits, looks."""
    made = [(name, globals()[name]()) for name in sys.argv[1:]]
    for name, one in made:
        try:
            next(one)
        except Exception as error:
            traceback.print_exc()
            sys.exit(f"{name} cannot be made: {error}")
    print("ready", flush=True)
    while not os.path.exists("/tmpfs/go"):
        time.sleep(0.01)
    for name, one in made:
        try:
            next(one, None)
            print(name, "ok", flush=True)
        except Exception as error:
            print(name, "failed:", repr(error), traceback.extract_tb(error.__traceback__)[-1].line, flush=True)
    print("done", flush=True)
    signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    main()
