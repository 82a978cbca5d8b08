"""Words of the helpdesk: the sites, with the things that each of them has, and words common to all."""

from __future__ import annotations

_SITES: dict[str, dict[str, str]] = {
    "hospital": {
        "device": "infusion pump, ward printer, blood scanner, heart monitor",
        "room": "staff ward, surgery lounge, nurses' office, night clinic",
        "purchase": "blood test, clinic visit, hearing check, X-ray",
        "system": "the patient portal, the ward planner, the lab database",
    },
    "bank": {
        "device": "cash machine, note counter, vault camera, card printer",
        "room": "vault office, client lounge, trading floor, branch hall",
        "purchase": "loan check, wire transfer, safe deposit box, credit report",
        "system": "the teller app, the loan database, the branch mailbox",
    },
    "airline": {
        "device": "gate scanner, boarding printer, cabin tablet, baggage scale",
        "room": "crew lounge, gate office, flight simulator, hangar",
        "purchase": "flight ticket, seat upgrade, extra suitcase, cabin meal",
        "system": "the crew roster, the booking engine, the flight planner",
    },
    "university": {
        "device": "lecture projector, lab microscope, campus printer, poster plotter",
        "room": "seminar hall, chemistry lab, reading room, lecture theatre",
        "purchase": "course book, exam fee, student card, lab coat",
        "system": "the exam portal, the campus mail, the grade database",
    },
    "council": {
        "device": "ballot scanner, passport camera, queue display, office copier",
        "room": "council chamber, wedding hall, mayor's office, public archive",
        "purchase": "building permit, market stall, dog licence, passport photo",
        "system": "the citizen portal, the permit register, the council mailbox",
    },
    "library": {
        "device": "book scanner, return machine, microfilm reader, label printer",
        "room": "quiet room, children's corner, map room, book store",
        "purchase": "reader card, book order, atlas reprint, late fee",
        "system": "the book catalogue, the loan desk app, the reader account page",
    },
    "hotel": {
        "device": "kitchen oven, lobby display, laundry press, room safe",
        "room": "banquet hall, breakfast room, rooftop bar, guest suite",
        "purchase": "spa visit, dinner voucher, double room, airport taxi",
        "system": "the guest register, the night planner, the kitchen app",
    },
    "museum": {
        "device": "audio guide, display lamp, ticket scanner, climate sensor",
        "room": "east gallery, sculpture court, paint workshop, lecture room",
        "purchase": "guided tour, art print, annual pass, exhibition book",
        "system": "the loan register, the tour planner, the picture archive",
    },
    "railway": {
        "device": "ticket machine, platform clock, signal panel, train radio",
        "room": "signal box, drivers' lounge, depot office, station hall",
        "purchase": "rail pass, night train berth, seat reservation, bicycle ticket",
        "system": "the timetable app, the driver roster, the depot planner",
    },
    "insurer": {
        "device": "claims scanner, call headset, mail sorter, desk laptop",
        "room": "claims office, call centre, actuaries' room, archive cellar",
        "purchase": "travel policy, car policy, expert report, home policy",
        "system": "the claims system, the policy register, the call planner",
    },
    "utility": {
        "device": "smart meter, pressure gauge, grid display, field tablet",
        "room": "control room, turbine hall, meter store, pump house",
        "purchase": "power contract, meter check, gas supply, solar panel",
        "system": "the meter portal, the outage map, the field planner",
    },
    "theatre": {
        "device": "stage lamp, sound desk, fog machine, box office till",
        "room": "rehearsal stage, costume room, main foyer, royal box",
        "purchase": "opera ticket, season pass, programme book, gala dinner",
        "system": "the rehearsal plan, the ticket shop, the cast list page",
    },
}

_COMMON = {
    "day": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "month": "January, February, March, April, May, June, July, August, September, October, November, December",
    "person": "Amina, Bruno, Chen, Dana, Elif, Farid, Greta, Hugo, Ines, Jonas, Kofi, Lena",
}

SITES = tuple(_SITES)
"""Names of the sites. A run with n sites takes the first n."""

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    site: {slot: tuple(words.split(", ")) for slot, words in {**own, **_COMMON}.items()} for site, own in _SITES.items()
}
"""Words that fill the slots of the phrases, by site and slot."""
