"""The channel: never blocks, counts every loss, has one reader."""

import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from sidecar.errors import ChannelError
from sidecar.wire import channel
from sidecar.wire.channel import SEND_QUEUE, TRANSPORT_MAX_BYTES, Receiver, Sender
from sidecar.wire.frame import Body, Frame, Requests, Source, Status, pack, unpack
from tests import fakes
from tests.fakes import ENGINE

STATUS = Status("live")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where both ends meet; the folder is made by the receiver."""
    return tmp_path / "run" / "i.sock"


@pytest.fixture
def receiver(path: Path) -> Iterator[Receiver]:
    owner = Receiver(path)
    yield owner
    owner.close()


@pytest.fixture
def sender(path: Path) -> Iterator[Sender]:
    made = Sender(path, ENGINE)
    yield made
    made.close()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def connect(sender: Sender, receiver: Receiver) -> Frame:
    """Send until the first frame arrives, and return it."""
    eventually(lambda: sender.send(STATUS))
    data = receiver.receive(60)
    assert data is not None
    return unpack(data)


def test_a_frame_arrives_with_its_place_in_the_stream(receiver: Receiver, sender: Sender) -> None:
    """Boot id, source, number and drops so far are stamped by the sender."""
    first = connect(sender, receiver)
    sender.send(STATUS, step=9)
    data = receiver.receive(60)
    assert data is not None
    header = unpack(data).header

    assert (header.boot, header.source, header.step) == (sender.boot, ENGINE, 9)
    assert header.seq == first.header.seq + 1 == sender.num_sent
    assert header.dropped_total == sender.num_dropped == first.header.seq - 1


def seconds_to_send(sender: Sender, body: Body, times: int) -> float:
    """Nine in ten sends take no longer: one that waits does so each time, a machine now and then.

    How long the slowest in a hundred take is measured on a quiet machine (bench/capacity).
    """
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        sender.send(body)
        durations.append(time.perf_counter() - started)
    return sorted(durations)[times * 9 // 10]


def test_without_a_receiver_sending_counts_and_never_blocks(path: Path) -> None:
    """A thousand frames to nobody: all dropped, all counted, 90 % of them within 5 ms."""
    sender = Sender(path, ENGINE)
    seconds = seconds_to_send(sender, STATUS, 1000)
    started = time.perf_counter()
    sender.close()

    assert (sender.num_sent, sender.num_dropped) == (1000, 1000)
    assert seconds < 0.005
    assert time.perf_counter() - started < 20  # else it would wait for ever


def test_a_receiver_that_does_not_read_fills_up_and_never_blocks(
    receiver: Receiver, sender: Sender
) -> None:
    """Queues are bounded: what does not fit is dropped and counted, and sending stays fast."""
    connect(sender, receiver)
    body = Requests(list(range(3)), [fakes.request()] * 20)
    before = sender.num_dropped
    seconds = seconds_to_send(sender, body, 2000)

    assert sender.num_dropped - before > 2000 - 20 * SEND_QUEUE
    assert seconds < 0.01


def test_a_message_that_is_there_is_not_polled_for(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll costs more than decoding what it asks for (docs/decisions/0017)."""
    connect(sender, receiver)
    polls: list[object] = []
    poll = zmq.Socket.poll

    def counting(socket: "zmq.Socket[bytes]", *told: int) -> int:
        polls.append(socket)
        return poll(socket, *told)

    monkeypatch.setattr(zmq.Socket, "poll", counting)

    def is_taken_without_a_poll() -> bool:
        sender.send(STATUS)
        time.sleep(0.01)  # or it may be on its way yet
        before = len(polls)
        return receiver.receive(60) is not None and len(polls) == before

    eventually(is_taken_without_a_poll)
    while receiver.receive(0) is not None:
        pass
    assert polls


def test_what_finds_the_queue_full_is_not_packed(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow sidecar costs the engine a question for each frame (docs/decisions/0017)."""
    connect(sender, receiver)
    packed: list[Frame] = []

    def counting(frame: Frame, key: bytes | None = None) -> bytes:
        packed.append(frame)
        return pack(frame, key)

    monkeypatch.setattr(channel, "pack", counting)
    body = Requests(list(range(3)), [fakes.request()] * 20)
    num_taken = sum(sender.send(body) for _ in range(2000))

    assert len(packed) == num_taken < 1000


def test_closing_never_waits(receiver: Receiver, path: Path) -> None:
    """With frames still queued on both sides, both ends close at once."""
    sender = Sender(path, ENGINE)
    connect(sender, receiver)
    for _ in range(500):
        sender.send(STATUS)
    started = time.perf_counter()
    sender.close()
    sender.close()  # twice is once

    assert time.perf_counter() - started < 20  # else it would wait for ever


def test_an_opened_sender_loses_no_first_frame(receiver: Receiver, path: Path) -> None:
    """Connected beforehand, the very first frame is handed over."""

    def is_sent(seconds: float) -> bool:
        sender = Sender(path, ENGINE)
        sender.open()
        time.sleep(seconds)
        first = sender.send(STATUS)
        sender.close()
        return first

    # A busy machine may take longer to connect than the pump gives it.
    assert any(is_sent(seconds) for seconds in (0.2, 2.0, 10.0))


def test_a_last_word_is_delivered_when_given_time(receiver: Receiver, path: Path) -> None:
    """What is queued when a sender closes still arrives within the time it is given."""
    sender = Sender(path, ENGINE)
    first = connect(sender, receiver)
    for _ in range(20):
        assert sender.send(STATUS)
    sender.close(linger_seconds=60)
    arrived = [receiver.receive(60) for _ in range(20)]

    assert None not in arrived
    last = arrived[-1]
    assert last is not None
    assert unpack(last).header.seq == first.header.seq + 20


def test_lingering_for_nobody_ends_in_time(path: Path) -> None:
    """Without a receiver there is nothing to wait for beyond the time given."""
    sender = Sender(path, ENGINE)
    sender.send(STATUS)
    started = time.perf_counter()
    sender.close(linger_seconds=0.2)

    assert time.perf_counter() - started < 20


def test_a_second_receiver_is_refused(receiver: Receiver, sender: Sender, path: Path) -> None:
    """It gets a sentence with the remedy, and the first one goes on receiving."""
    with pytest.raises(ChannelError, match="owned by another sidecar; stop it"):
        Receiver(path)

    connect(sender, receiver)


def test_a_closed_receiver_frees_the_path(path: Path) -> None:
    """No socket is left behind, and the next owner needs no clean-up."""
    Receiver(path).close()
    assert not path.exists()

    Receiver(path).close()


def test_a_socket_left_by_a_killed_owner_is_taken_over(path: Path) -> None:
    """The lock dies with its process; the file it leaves is no obstacle."""
    path.parent.mkdir()
    path.touch()
    receiver = Receiver(path)
    receiver.close()

    assert not path.exists()


@pytest.mark.parametrize("name", ["i.sock", "i.sock.lock"])
def test_a_symbolic_link_is_refused(path: Path, name: str) -> None:
    """Nobody can lead us to a file of his choice."""
    path.parent.mkdir()
    target = path.parent / "elsewhere"
    target.write_text("precious")
    (path.parent / name).symlink_to(target)

    with pytest.raises(ChannelError, match=r"symbolic link|cannot use"):
        Receiver(path)
    assert target.read_text() == "precious"


def test_a_path_too_long_is_refused_by_name(tmp_path: Path) -> None:
    """A unix socket address holds 107 bytes."""
    with pytest.raises(ChannelError, match="longer than 107 bytes; set a shorter SIDECAR_SOCKET"):
        Receiver(tmp_path / ("x" * 120))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The remedy names the key to change."""
    (tmp_path / "file").touch()

    with pytest.raises(ChannelError, match="set SIDECAR_SOCKET to a path"):
        Receiver(tmp_path / "file" / "i.sock")


def test_nobody_else_may_touch_the_socket(receiver: Receiver, path: Path) -> None:
    """Socket, lock and folder are closed to others, whatever the umask was."""
    for each in (path, Path(f"{path}.lock"), path.parent):
        assert stat.S_IMODE(each.stat().st_mode) & 0o007 == 0
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o770


def test_a_restarted_receiver_gets_fresh_frames_within_two_seconds(
    path: Path, sender: Sender
) -> None:
    """The sender finds the new owner by itself, and hands it nothing from before."""
    seconds = []
    for _ in range(3):  # the quickest: a busy machine may keep any of them waiting
        former = Receiver(path)
        connect(sender, former)
        for _ in range(20):
            sender.send(STATUS)
        former.close()
        eventually(lambda: not sender.send(STATUS))

        reborn = Receiver(path)
        opened_ns, started = time.time_ns(), time.monotonic()
        eventually(lambda: sender.send(STATUS))
        data = reborn.receive(60)
        seconds.append(time.monotonic() - started)
        reborn.close()
        eventually(lambda: not sender.send(STATUS))

        assert data is not None
        assert unpack(data).header.t_ns > opened_ns
    assert min(seconds) < 2


def test_a_giant_message_ends_its_sender_only(
    receiver: Receiver, sender: Sender, path: Path
) -> None:
    """20 MiB are cut by the transport: never received, and other senders keep working."""
    connect(sender, receiver)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    stranger.setsockopt(zmq.LINGER, 0)
    cut = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stranger.connect(f"ipc://{path}")
    stranger.send(bytes(TRANSPORT_MAX_BYTES + (4 << 20)))
    assert cut.poll(5000), "the transport let it pass"

    received = []
    for _ in range(30):
        assert sender.send(STATUS)
        data = receiver.receive(60)
        assert data is not None
        received.append(len(data))
    stranger.disable_monitor()
    for end in (cut, stranger):
        end.close()
    context.term()

    assert max(received) < 1000


def test_every_sender_is_heard(receiver: Receiver, path: Path) -> None:
    """Eight ranks at once: what each handed over arrives, in its order."""
    arrived: dict[str, list[int]] = {}
    sent: dict[str, int] = {}

    def rank(tp: int) -> None:
        sender = Sender(path, Source("engine", tp=tp))
        eventually(lambda: sender.send(STATUS))
        for _ in range(20):
            eventually(lambda: sender.send(STATUS))
        sent[sender.source.name] = sender.num_sent - sender.num_dropped
        done.wait(60)
        sender.close()

    done = threading.Event()
    threads = [threading.Thread(target=rank, args=(tp,)) for tp in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(sent) < 8 or sum(map(len, arrived.values())) < sum(sent.values()):
        assert time.monotonic() < deadline, f"heard {arrived} of {sent}"
        # Nothing may come for a while: a rank that was heard out has yet to write down its count.
        data = receiver.receive(0.1)
        if data is not None:
            header = unpack(data).header
            arrived.setdefault(header.source.name, []).append(header.seq)
    done.set()
    for thread in threads:
        thread.join()

    assert {name: len(seqs) for name, seqs in arrived.items()} == sent
    assert all(seqs == sorted(seqs) for seqs in arrived.values())


def test_nothing_is_not_a_message(receiver: Receiver) -> None:
    """Waiting in vain returns None after the time given."""
    started = time.monotonic()

    assert receiver.receive(0.05) is None
    assert 0.04 < time.monotonic() - started < 30


@pytest.mark.parametrize("open_end", [Receiver, lambda path: Sender(path, ENGINE).open()])
def test_a_folder_that_others_may_write_is_refused(
    open_end: Callable[[Path], object], tmp_path: Path
) -> None:
    """Where everybody may create files, a folder that is not its user's alone is not entered."""
    tmp_path.chmod(0o1777)
    folder = tmp_path / "llm-internals-0"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(ChannelError, match="SIDECAR_SOCKET"):
        open_end(folder / "ingest.sock")


def test_a_linked_folder_is_refused_where_everybody_may_write(tmp_path: Path) -> None:
    """A symbolic link may lead anywhere."""
    tmp_path.chmod(0o1777)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ChannelError, match="SIDECAR_SOCKET"):
        Receiver(tmp_path / "link" / "ingest.sock")


def test_what_nobody_takes_is_not_packed(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without a sidecar pays for no frame; it is numbered and counted all the same."""
    packed: list[Frame] = []
    monkeypatch.setattr("sidecar.wire.channel.pack", lambda frame, _: packed.append(frame))
    assert not sender.send(STATUS)
    assert (sender.num_sent, sender.num_dropped, packed) == (1, 1, [])


def test_what_is_there_is_read_without_waiting(receiver: Receiver, sender: Sender) -> None:
    """A message that came before is the next one, even for a reader that does not wait."""
    connect(sender, receiver)
    eventually(lambda: sender.send(STATUS))
    eventually(lambda: receiver.receive(0) is not None)
    assert receiver.receive(0) is None
