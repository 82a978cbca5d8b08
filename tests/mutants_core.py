"""More errors for ``mutants``: of folds, groups, clients, rounds and states. In the form of ``mutant_list``."""

from __future__ import annotations

CORE: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("methods/combine.py", "conformance/test_history.py"): {
        "a mean is not weighted": (
            "self._mean.add(change, weight)\n"
            "\n"
            "    def value(self) -> Adapter:\n"
            "        return algebra.add(self._adapter, self",
            "self._mean.add(change, 1.0)\n"
            "\n"
            "    def value(self) -> Adapter:\n"
            "        return algebra.add(self._adapter, self",
        ),
    },
    ("roles/server.py", "unit/test_round.py"): {
        "all updates are of as many items": ("update.adapter, update.n_train, ranks", "update.adapter, 1, ranks"),
        "a visit is not counted": ("old.visits.get(client, 0) + 1", "old.visits.get(client, 1)"),
    },
    ("roles/server.py", "conformance/test_history.py"): {
        "a group learns from nobody": (
            "for name in dict.fromkeys((EVERYBODY, state.group_of.get(update.client, EVERYBODY))):",
            "for name in (EVERYBODY,):",
        ),
        "a client that comes into a group is believed to know its adapter":
            ("and group in old.groups", "and group not in old.groups"),
    },
    ("roles/agreement.py", "conformance/test_history.py"): {
        "clients add relayed updates without their weights": ("number), float(weight))", "number), 1.0)"),
    },
    ("methods/peers.py", "conformance/test_history.py"): {
        "a client joins the farthest group": ("nearest = min(means,", "nearest = max(means,"),
        "a client that knows no peers starts from everybody's adapter":
            ("return n == 0 or (n == 1 and memory.trained > 0)", "return n == 1 and memory.trained > 0"),
    },
    ("methods/method.py", "conformance/test_history.py"): {
        "a client with peers keeps nothing for when it is alone":
            ("        if self.grouping.describes:  # it may be alone", "        if False:  # it may be alone"),
    },
    ("methods/ranks.py", "conformance/test_history.py"): {
        "all clients have the ranks of the first":
            ("first_ranks(self.shares[i % len(self.shares)], initial)", "first_ranks(self.shares[0], initial)"),
    },
    ("roles/client.py", "conformance/test_history.py"): {
        "the residual is not added": ("compensate(change, memory.residual,", "compensate(change, {},"),
        "a client is told of its peers before it has described itself": (
            "memory = received(message, described(memory, trainer, agreement), agreement)",
            "memory = described(received(message, memory, agreement), trainer, agreement)",
        ),
    },
    ("roles/client.py", "unit/test_client.py"): {
        "steps are not counted": ("steps=memory.steps + n_steps", "steps=memory.steps"),
        "what is known is kept though it comes again":
            ("known={} if agreement.always_whole else memory.known", "known=memory.known"),
        "a client that has not trained keeps what a validation tells it":
            ("memory = heard if memory.trained else", "memory = heard if True else"),
        "an evaluation is remembered":
            ("agreement.schema, agreement.initial), memory", "agreement.schema, agreement.initial), heard"),
        "a personal model goes all the way":
            ("share = 1.0 if method.grouping.is_alone(memory) else takes.share", "share = 1.0"),
        "the last steps bring lost ranks back": (
            "return method.without_unused_ranks(algebra.between(start, trained, share), memory)",
            "return algebra.between(start, trained, share)",
        ),
        "a client answers messages for others": ("if message.client != trainer.client:", "if False:"),
    },
    ("methods/method.py", "unit/test_client.py"): {
        "training starts where the run began": ("else own | memory.known", "else memory.known | own"),
    },
    ("roles/agreement.py", "unit/test_client.py"): {
        "local-only takes a last round of steps always": ('if name == "local" and not takes_steps:', "if False:"),
    },
    ("roles/server.py", "unit/test_client.py"): {
        "missing scores are not missed": ("if tuple(evaluation.scores) != agreement.scored:", "if False:"),
    },
    ("round.py", "conformance/test_history.py"): {
        "nobody stands at the door": ("door.admit(reply, self.state, self.agreement)", "pass"),
        "requests cost nothing":
            ('        self._entries.append(Entry(self.round, client, "down", len(message.blob), message.parts))\n', ""),
    },
    ("round.py", "unit/test_round.py"): {
        "a lost state ends the run": ('lost = reply.code == "version" and', "lost = False and"),
        "a lost state is asked for without end":
            ("and not any(failure.client == client for failure in self.failures)", ""),
        "an engine may leave clients out": ("if self._read != list(clients):", "if False:"),
        "a sample depends on the order of clients":
            ("sorted(sorted(clients)[i] for i in drawn)", "sorted(clients[i] for i in drawn)"),
        "half a client is none": ("int(fraction * n_clients + 0.5)", "int(fraction * n_clients)"),
        "a validation is charged to the next round":
            ("(replace(entry, round=record.round) for entry in talk.ledger)", "talk.ledger"),
        "who does not answer a validation is believed to know":
            ("dict.fromkeys(scores, state.round)", "dict.fromkeys(clients, state.round)"),
    },
    ("packing.py", "unit/test_packing.py"): {
        "fields that are not of the class are dropped": ("if set(tree) != set(declared):", "if False:"),
        "a tensor in two places is written twice": ("if id(value) not in numbers:", "if True:"),
        "the order of names is lost": ("for key, one in value.items()]", "for key, one in sorted(value.items())]"),
    },
    ("checkpoint.py", "unit/test_checkpoint.py"): {
        "a lost state is a new run": ("if len(lines) > 1:", "if False:"),
        "the state comes before the record that it counts": (
            "        with naming(self._records):\n",
            "        self._write_state(state)\n        with naming(self._records):\n",
        ),
        "an amended record does not fit the state before":
            ("self._write_state(replace(before, lines=(*before.lines, amended)))", "pass"),
        "what a validation told is forgotten": ("if self._read(client, n).trained > after:", "if True:"),
        "tensors of any shape are taken":
            ("if expected is None or expected.shape != t.shape or expected.dtype != t.dtype:", "if expected is None:"),
    },
    ("experiment.py", "test_resume.py"): {
        "a changed config goes on": ("            if begun.get(key) != now:", "            if False:"),
    },
    ("site.py", "test_site.py"): {
        "what the server never used is kept at a site":
            ("            store.forget(self.id, after=used)", "            pass"),
        "a site's folder is anybody's": ("if found.get(key) != claim[key]:", "if False:"),
    },
    ("experiment.py", "test_run.py"): {
        "only everybody's adapter is saved": (
            "for name, group in main.state.groups.items():",
            "for name, group in [(EVERYBODY, main.state.everybody)]:",
        ),
    },
}  # fmt: skip
