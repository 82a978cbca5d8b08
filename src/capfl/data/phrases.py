"""Twelve kinds of request in three grammatical forms.

Every form of a kind can stand both for what is asked and for what is only mentioned, so that the words
themselves do not tell which of the two it is. All noun phrases are singular and definite.
"""

from __future__ import annotations

from typing import Literal

Form = Literal["noun", "verb", "clause"]  # "about NOUN", "I want to VERB", "I write because CLAUSE"

PHRASES: dict[str, dict[Form, str]] = {
    "password": {
        "noun": "the password for {system} | my locked account in {system} | my login to {system} | "
        "the sign-in code for {system} | the password that expired on {day} | my forgotten password",
        "verb": "reset my password for {system} | get back into {system} | unlock my account in {system} | "
        "choose a new password | log in to {system} again | recover the login that I forgot",
        "clause": "{system} rejects my password | I forgot the password for {system} | "
        "my account in {system} is locked | {system} will not let me sign in",
    },
    "invoice": {
        "noun": "the invoice for my {purchase} | the bill from {month} | the amount charged for my {purchase} | "
        "the invoice that came on {day} | the missing bill for my {purchase} | the total on my {month} bill",
        "verb": "get a copy of the invoice for my {purchase} | query the bill from {month} | "
        "have the {month} invoice corrected | pay the bill for my {purchase} | "
        "understand the price of my {purchase} | split the invoice from {month}",
        "clause": "the invoice for my {purchase} is wrong | no bill has come for {month} | "
        "the total on the {month} bill looks odd | the invoice lists my {purchase} twice",
    },
    "device": {
        "noun": "the broken {device} | the {device} in the {room} | the repair of the {device} | "
        "the faulty {device} | the error on the {device} | the {device} that stopped on {day}",
        "verb": "get the {device} repaired | report a fault in the {device} | "
        "have the {device} checked | replace the dead {device} | "
        "make the {device} work again | show {person} the faulty {device}",
        "clause": "the {device} is broken | the {device} in the {room} will not start | "
        "the {device} makes a strange noise | the {device} stopped working on {day}",
    },
    "leave": {
        "noun": "my leave in {month} | my day off on {day} | the holiday planned for {month} | "
        "my free week in {month} | the leave request from {month} | my absence on {day}",
        "verb": "take leave in {month} | have {day} off | move my holiday to {month} | "
        "plan a week away in {month} | stay at home on {day} | cancel my holiday in {month}",
        "clause": "I want to be off work on {day} | my holiday in {month} is not approved | "
        "I cannot work on {day} | {person} and I both want {month} off",
    },
    "badge": {
        "noun": "my access badge | the key card for the {room} | the badge that I lost on {day} | "
        "the door pass for {person} | my entry card | the locked door of the {room}",
        "verb": "renew my access badge | get a key card for the {room} | open the {room} with my card | "
        "replace the badge that I lost | order a door pass for {person} | be let into the {room}",
        "clause": "my badge does not open the {room} | I lost my key card on {day} | "
        "the door of the {room} refuses my card | {person} has no badge",
    },
    "room": {
        "noun": "the booking of the {room} | the {room} for {day} | my reservation of the {room} | "
        "the meeting space for {day} | the double booking on {day} | the room reserved for {person}",
        "verb": "book the {room} for {day} | reserve a space to meet {person} | "
        "move my booking to the {room} | cancel the reservation for {day} | find a free room on {day} | "
        "meet in the {room} in {month}",
        "clause": "we have no room to meet on {day} | the {room} is booked twice on {day} | "
        "I want the {room} for a talk on {day} | {person} took my reserved room",
    },
    "refund": {
        "noun": "the refund for my {purchase} | the money back for my {purchase} | "
        "the repayment promised in {month} | the reimbursement for my {purchase} | "
        "the money owed to me since {month} | the returned payment from {month}",
        "verb": "get a refund for my {purchase} | have my money back for the {purchase} | "
        "be repaid for my {purchase} | claim the reimbursement from {month} | "
        "get back the price of my {purchase} | recover what I paid for the {purchase}",
        "clause": "nobody has refunded my {purchase} | you owe me money for the {purchase} | "
        "my refund from {month} has not arrived | I want my money back for the {purchase}",
    },
    "address": {
        "noun": "my new address | the change of my phone number | the old street name in {system} | "
        "the contact data of {person} | my move in {month} | "
        "the spelling of my surname",
        "verb": "change my address in {system} | give you my new phone number | correct my surname in {system} | "
        "update the contact data of {person} | tell you that I moved in {month} | register a new e-mail address",
        "clause": "I moved to a new address in {month} | my phone number in {system} is out of date | "
        "{system} still shows my old street | my surname is misspelled in {system}",
    },
    "certificate": {
        "noun": "the certificate for {month} | the written proof of my {purchase} | "
        "the signed confirmation for {person} | the stamped copy of my record | "
        "the statement for the tax office | the official letter about my {purchase}",
        "verb": "get a certificate for {month} | have a confirmation signed by {person} | "
        "get written proof of my {purchase} | get a stamped copy of my record | "
        "obtain a statement for the tax office | order an official letter about my {purchase}",
        "clause": "the tax office wants a statement from you | my certificate for {month} has not come | "
        "{person} did not sign my confirmation | I have no written proof of my {purchase}",
    },
    "parcel": {
        "noun": "the parcel from {day} | the delivery of the new {device} | the package that {person} sent | "
        "the missing parcel | the box left at the {room} | the shipment due in {month}",
        "verb": "track the parcel from {day} | find the package that {person} sent | "
        "have a parcel collected on {day} | send a box to {person} | "
        "delay the delivery of the new {device} | pick up a package from the {room}",
        "clause": "the parcel from {person} never arrived | the box for the {room} went astray | "
        "the new {device} was not delivered | the package due on {day} is lost",
    },
    "training": {
        "noun": "the course on the {device} | my place in the {month} training | the workshop with {person} | "
        "the lesson on {system} | my seat in the class on {day} | the safety training in {month}",
        "verb": "join the course on the {device} | sign up for the training in {month} | "
        "learn how to use {system} | attend the workshop with {person} | "
        "take the safety class on {day} | give up my seat in the {month} course",
        "clause": "the course in {month} is full | nobody taught me to use the {device} | "
        "I am not on the class list for {day} | {person} wants to join the {month} workshop",
    },
    "parking": {
        "noun": "my parking permit | the parking space for {person} | the full car park on {day} | "
        "the parking fine from {month} | the charging point for my car | the bicycle stand near the {room}",
        "verb": "renew my parking permit | park near the {room} on {day} | "
        "reserve a parking space for {person} | contest the parking fine from {month} | "
        "leave my car here overnight | charge my car on {day}",
        "clause": "somebody has taken my parking space | my parking permit ends in {month} | "
        "the car park barrier stays shut | I got a parking fine on {day}",
    },
}

INTENTS = tuple(PHRASES)
"""The twelve kinds of request, the same at every site."""

PLAIN: dict[Form, tuple[str, ...]] = {
    "noun": ("I have a question about {ask}.", "Can you help with {ask}?", "Please look at {ask}."),
    "verb": ("I need to {ask}.", "How do I {ask}?", "Please help me to {ask}."),
    "clause": ("I write because {ask}.", "The trouble is that {ask}."),
}
"""Frames with one topic."""

FRAMES: dict[Form, tuple[str, ...]] = {
    "noun": (
        "This is not about {other}; it is about {ask}.",
        "Thanks for settling {other}. Next is {ask}.",
        "While {other} can wait, {ask} is urgent.",
        "{other} is fine now, but {ask} is not.",
        "You wrote about {other}, yet I had asked about {ask}.",
        "Others will call about {other}; I call about {ask}.",
        "I ask about {ask}, not about {other}.",
        "I still worry about {ask}, while {other} is settled.",
        "{ask} is the problem now, no longer {other}.",
        "Please look at {ask} and forget {other}.",
        "Can you help with {ask}? Never mind {other}.",
        "{ask} worries me, whereas {other} is in order.",
    ),
    "verb": (
        "I no longer need to {other} but to {ask}.",
        "My colleague wanted to {other}; I only want to {ask}.",
        "I managed to {other}; now I have to {ask}.",
        "Never mind my wish to {other}; I must {ask}.",
        "I know how to {other}, but how do I {ask}?",
        "Do not help me to {other}; help me to {ask}.",
        "Please help me to {ask}; a friend will help me to {other}.",
        "I want to {ask} this time, not to {other}.",
        "I must {ask} today; yesterday I had to {other}.",
        "How do I {ask}? I already know how to {other}.",
        "Help me to {ask}, since I no longer want to {other}.",
        "I asked to {ask}, yet you helped me to {other}.",
    ),
    "clause": (
        "I wrote that {other}, but that was solved; now {ask}.",
        "It is not true that {other}; the truth is that {ask}.",
        "A colleague will write that {other}; I write because {ask}.",
        "I write because {ask}, not because {other}.",
        "Now {ask}; forget my note that {other}.",
        "The trouble is that {ask}, no longer that {other}.",
    ),
}
"""Frames with two topics: ``ask`` is the request, ``other`` is only mentioned. In half of each, ``ask`` is first."""
