"""The built-in texts: replies follow from request and style alone, and most of a site's are unlike any other."""

from __future__ import annotations

from capfl.data.helpdesk import SITES, requests
from capfl.data.helpdesk import generate as labelled
from capfl.data.replies import STYLES, TOPICS, generate, reply


def test_replies_name_topic_team_and_details_of_what_is_asked():
    request = requests("hospital", 200, 0)[0]
    topic, team = TOPICS["badge"]
    two = type(request)("text", list(TOPICS).index("badge"), ("staff ward", "Monday"))
    assert reply(two, "brief") == f"{team} <- {topic}: staff ward, Monday / open"
    none = type(request)("text", list(TOPICS).index("badge"), ())
    assert reply(none, "brief") == f"{team} <- {topic} / open"
    assert f"about {topic} (staff ward, Monday). The {team} team" in reply(two, "formal")


def test_sites_write_in_one_style_or_every_second_in_the_other():
    one, two = generate(3, 60, 0.0, 0), generate(3, 60, 0.5, 0)
    assert {item.fields["style"] for item in one} == {"formal"}
    assert [{i.fields["style"] for i in two if i.fields["site"] == site} for site in SITES[:3]] == [
        {"formal"}, {"brief"}, {"formal"},
    ]  # fmt: skip
    assert set(STYLES) == {"formal", "brief"}
    assert [i.question for i in one] == [i.question for i in two] == [i.question for i in labelled(3, 60, 0.5, 0)]
    assert all(not item.choices and item.fields["task"] == "replies" for item in one)
    assert len({item.completion for item in one[:60]}) > 40
