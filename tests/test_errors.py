"""The tree of errors, as the documentation draws it."""

import pytest

import vbus

KINDS = {
    "Timeout": TimeoutError,
    "Closed": vbus.Error,
    "Full": vbus.Error,
    "EncodeError": ValueError,
    "DecodeError": ValueError,
    "TopicError": ValueError,
    "ConfigError": ValueError,
    "TooLarge": ValueError,
    "NoServer": ConnectionError,
    "RemoteError": vbus.Error,
    "ForkError": RuntimeError,
    "SharedMemoryError": OSError,
    "TransportError": OSError,
}


@pytest.mark.contract("`vbus.Error` is the base", "(these five also `ValueError`)")
@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_error_is_a_vbus_error_and_what_python_calls_it(name, kind):
    error = getattr(vbus, name)
    assert issubclass(error, vbus.Error)
    assert issubclass(error, kind)
    assert issubclass(vbus.Error, Exception)


@pytest.mark.contract("Attributes `topic`, `subscriber`, `limit`, `field` where they apply")
@pytest.mark.parametrize("name", KINDS)
def test_every_error_has_the_attributes_and_they_can_be_set(name):
    error = getattr(vbus, name)("what happened")
    assert (error.topic, error.subscriber, error.limit, error.field) == (None, None, None, None)
    error.topic = "a/b"
    assert error.topic == "a/b"
    assert str(error) == "what happened"


@pytest.mark.contract("no control characters, no `*` in a published topic")
@pytest.mark.parametrize("topic", ["", "/a", "a/", "a//b", "a/*", "a\nb", "x" * 256])
def test_a_topic_that_is_none_is_refused(node, topic):
    with pytest.raises(vbus.TopicError):
        node.publisher(topic)


@pytest.mark.contract("Attributes `topic`, `subscriber`, `limit`, `field` where they apply")
def test_an_error_of_use_names_its_topic_or_its_quality(node):
    with (
        node.publisher("t", int) as publisher,
        node.subscriber("t", callback=print) as subscriber,
        node.serve("s", lambda value: iter([value])),
        node.call_stream("s", 1) as stream,
    ):
        stream.close()
        for attempt in (
            lambda: publisher.loan(1),
            lambda: publisher.loan_array(1, "u1"),
            lambda: subscriber.receive(0),
            lambda: publisher.publish("text"),
        ):
            with pytest.raises((vbus.ConfigError, vbus.EncodeError)) as caught:
                attempt()
            assert caught.value.topic == "t"
        with pytest.raises(vbus.Closed) as left:
            next(stream)
        assert left.value.topic == "s"
        with pytest.raises(vbus.ConfigError) as refused:
            node.subscriber("t", priority=1)
        assert refused.value.field == "priority"


@pytest.mark.contract("`*` inside a longer segment is `TopicError`")
@pytest.mark.parametrize("pattern", ["a*/b", "a/**b", ""])
def test_a_pattern_that_is_none_is_refused(node, pattern):
    with pytest.raises(vbus.TopicError):
        node.subscriber(pattern)


@pytest.mark.parametrize(
    "qos",
    [
        {"depth": 0},
        {"depth": "many"},
        {"on_full": "explode"},
        {"reliability": "mostly"},
        {"history": -1},
        {"priority": 8},
        {"lifespan": -1.0},
        {"colour": "red"},
    ],
)
def test_wrong_quality_of_service_is_refused(node, qos):
    with pytest.raises(vbus.ConfigError):
        node.publisher("a/b", **qos)
    with pytest.raises(vbus.ConfigError):
        vbus.Channel("a/b", **qos)


@pytest.mark.contract(
    'are the publisher\'s alone and `"error"` is not for subscribers',
    "what in it is the publisher's alone is ignored by subscribers",
)
@pytest.mark.parametrize(
    "qos", [{"max_size": 10}, {"priority": 1}, {"block_timeout": 1.0}, {"on_full": "error"}]
)
def test_what_is_the_publishers_alone_is_refused_from_a_subscriber_but_ignored_in_a_channel(node, qos):
    with pytest.raises(vbus.ConfigError):
        node.subscriber("a/b", **qos)
    with node.subscriber(vbus.Channel("a/b", **qos)) as subscriber:
        assert subscriber.topic == "a/b"
