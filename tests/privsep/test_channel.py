"""The channel over real sockets: descriptors, their number and kind, and the end of a conversation."""

from __future__ import annotations

import os
import socket

import pytest

from gpop.privsep import channel, messages
from tests import frames
from tests.descriptors import open_descriptors, room_for


@pytest.fixture
def ends():
    """Both ends of a channel."""
    ours, theirs = (socket.socket(fileno=end.detach()) for end in channel.pair())
    with ours, theirs:
        yield ours, theirs


def test_descriptors_arrive_and_are_closed_on_exec(ends):
    """A descriptor that was sent is the receiver's own, and no program it starts inherits it."""
    ours, theirs = ends
    reading, writing = os.pipe()
    channel.send(ours, messages.encode(messages.ATTACH, front=1), [writing])
    os.close(writing)
    frame, fds = channel.receive(theirs)
    assert frame.kind == messages.ATTACH
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    channel.close_all(fds)
    assert os.read(reading, 100) == b"through"
    os.close(reading)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_any_other_number_of_descriptors_is_refused_and_none_leaks(ends, count):
    """SERVE takes exactly two; with any other number they are closed and the frame refused."""
    ours, theirs = ends
    before = open_descriptors()
    channel.send(ours, frames.serve(), [0] * count)
    with pytest.raises(messages.BadFrame):
        channel.receive(theirs)
    assert open_descriptors() == before


@pytest.mark.parametrize("room", [0, 1])
def test_a_receiver_without_a_free_descriptor_does_not_blame_the_sender(ends, room):
    """It is told that it is short itself, with the frame; what has arrived is closed."""
    ours, theirs = ends
    before = open_descriptors()
    channel.send(ours, frames.serve(), [0, 0])
    with room_for(room), pytest.raises(channel.ShortOfDescriptors) as raised:
        channel.receive(theirs)
    assert messages.decode(raised.value.octets).fields["account"] == b"joe"
    assert open_descriptors() == before
    channel.send(ours, frames.serve(), [0, 0])
    channel.close_all(channel.receive(theirs)[1])


@pytest.mark.parametrize(
    "octets, fds, room",
    [(messages.encode(messages.READY), [0], 0), (b"no frame", [0, 0], 1), (frames.serve(), [0] * 5, 4)],
    ids=["a kind that has none", "noise", "more than any has"],
)
def test_who_is_short_of_descriptors_believes_nothing_that_it_would_not_else(ends, octets, fds, room):
    """A frame that is bad with all its descriptors is bad without them."""
    ours, theirs = ends
    before = open_descriptors()
    channel.send(ours, octets, fds)
    with room_for(room), pytest.raises(messages.BadFrame):
        channel.receive(theirs)
    assert open_descriptors() == before


def test_descriptors_with_a_malformed_frame_do_not_leak(ends):
    """Octets that are no frame take their descriptors with them."""
    ours, theirs = ends
    before = open_descriptors()
    channel.send(ours, b"no frame", [0])
    with pytest.raises(messages.BadFrame):
        channel.receive(theirs)
    assert open_descriptors() == before


def test_a_frame_that_was_cut_short_is_refused(ends):
    """A frame longer than the receiver asked for is not taken for a shorter one."""
    ours, theirs = ends
    channel.send(ours, messages.encode(messages.PIPELINED, octets=b"x" * 1000))
    with pytest.raises(messages.BadFrame, match="cut short"):
        channel.receive(theirs, 100)


def test_the_end_of_the_other_process_is_the_end_of_the_conversation(ends):
    """EOF is ChannelClosed, not an empty frame."""
    ours, theirs = ends
    ours.close()
    with pytest.raises(channel.ChannelClosed):
        channel.receive(theirs)


def test_login_descriptors_are_a_stream_and_a_channel(ends, tmp_path):
    """A taken-over front can't pass a file, a pipe, a listening or a datagram socket as a client."""
    ours, _ = ends
    stream, other = socket.socketpair()
    listening = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with stream, other, listening, datagrams, open(tmp_path / "file", "wb") as file:
        channel.check_login_descriptors(stream.fileno(), ours.fileno())
        for wrong in (listening, datagrams, file, ours):
            with pytest.raises(messages.BadFrame):
                channel.check_login_descriptors(wrong.fileno(), ours.fileno())
        for wrong in (stream, listening, file):
            with pytest.raises(messages.BadFrame):
                channel.check_login_descriptors(stream.fileno(), wrong.fileno())


def test_a_frame_sent_before_a_close_arrives_though_the_closer_had_not_read_all(ends):
    """Linux reports a reset before what was sent; a refusal must not be lost behind it."""
    ours, theirs = ends
    channel.send(ours, messages.encode(messages.PIPELINED, octets=b"never read"))
    channel.send(theirs, messages.encode(messages.READY))
    theirs.close()
    frame, _ = channel.receive(ours)
    assert frame.kind == messages.READY
    with pytest.raises(channel.ChannelClosed):
        channel.receive(ours)


KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]


@pytest.mark.parametrize("kind", KINDS, ids=["stream", "messages", "datagrams"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_what_lies_unread_in_a_socket_is_closed_before_it(kind, is_open):
    """Sockets within sockets, behind messages without octets: all closed, and it comes to an end."""
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    inner, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    socket.send_fds(other, [b""], [writing])
    os.close(writing)
    ours.send(b"")
    for _ in range(2):
        socket.send_fds(ours, [b"x"], [inner.fileno()])
    inner.close()
    if not is_open:
        ours.close()
    channel.close_all([theirs.detach()])
    assert os.read(reading, 1) == b""
    os.close(reading)
    ours.close()
    other.close()
    assert open_descriptors() == before
