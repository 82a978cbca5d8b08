"""Errors to put into methods, roles, rounds and states, by name: file, old text, new text, tests. See ``mutants``."""

from __future__ import annotations

HISTORY, ROUND, CLIENT = "conformance/test_history.py", "unit/test_round.py", "unit/test_client.py"
DISK, PACKING = "unit/test_checkpoint.py", "unit/test_packing.py"

CORE: dict[str, tuple[str, str, str, str]] = {
    # -- folds ------------------------------------------------------------------------------------------
    "a mean is not weighted": (
        "methods/combine.py",
        "self._mean.add(change, weight)\n\n    def value(self) -> Adapter:\n        return algebra.add(self._adapter, self",
        "self._mean.add(change, 1.0)\n\n    def value(self) -> Adapter:\n        return algebra.add(self._adapter, self",
        HISTORY,
    ),
    "all updates are of as many items": (
        "roles/server.py", "update.adapter, update.n_train, ranks", "update.adapter, 1, ranks", ROUND
    ),
    "a group learns from nobody": (
        "roles/server.py",
        "for name in dict.fromkeys((EVERYBODY, state.group_of.get(update.client, EVERYBODY))):",
        "for name in (EVERYBODY,):",
        HISTORY,
    ),
    "a visit is not counted": (
        "roles/server.py", "old.visits.get(client, 0) + 1", "old.visits.get(client, 1)", ROUND
    ),
    "clients add relayed updates without their weights": (
        "roles/agreement.py", "number), float(weight))", "number), 1.0)", HISTORY
    ),
    "an exact product counts the mean twice": (
        "methods/combine.py", "addmm_(up, down, alpha=-1)", "addmm_(up, down, alpha=0)", "unit/methods/test_combine.py"
    ),
    "lost ranks of a product stay lost": (
        "methods/combine.py", "down = torch.where(down.any(1, keepdim=True), down, cut[f\"{module}.A\"])", "pass",
        "unit/methods/test_combine.py",
    ),
    "a long change is not clipped": (
        "methods/robust.py", "shorter = change if norm <= longest else algebra.scaled(change, longest / norm)",
        "shorter = change", "unit/methods/test_robust.py",
    ),
    "private changes are not clipped": (
        "methods/private.py", "share = min(1.0, self._of.clip / max(algebra.norm(heard), self._of.clip))", "share = 1.0",
        "unit/methods/test_private.py",
    ),
    # -- who learns with whom, and with which ranks -----------------------------------------------------------
    "a client joins the farthest group": (
        "methods/peers.py", "nearest = min(means,", "nearest = max(means,", HISTORY
    ),
    "a group may be as far as it likes": (
        "methods/peers.py", "means[nearest] <= NEAR", "means[nearest] <= 1e9", "unit/methods/test_peers.py"
    ),
    "a client that knows no peers starts from everybody's adapter": (
        "methods/peers.py", "return n == 0 or (n == 1 and memory.trained > 0)", "return n == 1 and memory.trained > 0",
        HISTORY,
    ),
    "a client that comes into a group is believed to know its adapter": (
        "roles/server.py", "and group in old.groups", "and group not in old.groups", HISTORY
    ),
    "a client with peers keeps nothing for when it is alone": (
        "methods/method.py", "        if self.grouping.describes:  # it may be alone", "        if False:  # it may be alone",
        HISTORY,
    ),
    "all clients have the ranks of the first": (
        "methods/ranks.py", "first_ranks(self.shares[i % len(self.shares)], initial)", "first_ranks(self.shares[0], initial)",
        HISTORY,
    ),
    "faint ranks stay in a client's own model": (
        "methods/posterior.py", "(own >= self.floor * own.mean())", "(own >= 0 * own.mean())",
        "unit/methods/test_posterior.py",
    ),
    "factors take turns in the wrong order": (
        "methods/factors.py", '("B", "A"), "AB")', '("A", "B"), "AB")', "unit/methods/test_factors.py"
    ),
    # -- what a client does --------------------------------------------------------------------------------------
    "the residual is not added": (
        "roles/client.py", "compensate(change, memory.residual,", "compensate(change, {},", HISTORY
    ),
    "the residual is not kept": (
        "roles/client.py", "        residual=residual,", "        residual={},", HISTORY
    ),
    "steps are not counted": (
        "roles/client.py", "steps=memory.steps + n_steps", "steps=memory.steps", CLIENT
    ),
    "what is known is kept though it comes again": (
        "roles/client.py", "known={} if agreement.always_whole else memory.known", "known=memory.known", CLIENT
    ),
    "training starts where the run began": (
        "methods/method.py", "else own | memory.known", "else memory.known | own", CLIENT
    ),
    "a client that has not trained keeps what a validation tells it": (
        "roles/client.py", "memory = heard if memory.trained else", "memory = heard if True else", CLIENT
    ),
    "a client is told of its peers before it has described itself": (
        "roles/client.py",
        "memory = received(message, described(memory, trainer, agreement), agreement)",
        "memory = described(received(message, memory, agreement), trainer, agreement)",
        HISTORY,
    ),
    "an evaluation is remembered": (
        "roles/client.py", "agreement.schema, agreement.initial), memory", "agreement.schema, agreement.initial), heard",
        CLIENT,
    ),
    "a personal model goes all the way": (
        "roles/client.py", "share = 1.0 if method.grouping.is_alone(memory) else takes.share", "share = 1.0", CLIENT
    ),
    "the last steps bring lost ranks back": (
        "roles/client.py", "return method.without_unused_ranks(algebra.between(start, trained, share), memory)",
        "return algebra.between(start, trained, share)", CLIENT,
    ),
    "a client answers messages for others": (
        "roles/client.py", "if message.client != trainer.client:", "if False:", CLIENT
    ),
    "local-only takes a last round of steps always": (
        "roles/agreement.py", 'if name == "local" and not takes_steps:', "if False:", CLIENT
    ),
    # -- the round, its ledger and its door ---------------------------------------------------------------------------
    "a client that failed is sent what it may not understand": (
        "roles/server.py", "version = 0 if again else state.versions.get(client, 0)",
        "version = state.versions.get(client, 0)", ROUND,
    ),
    "a client that failed is believed to know what it knew": (
        "roles/server.py", "in old.versions.items() if client not in asked}", "in old.versions.items()}", ROUND
    ),
    "updates of others are taken": ("roles/server.py", "if message.client != client:", "if False:", ROUND),
    "updates of other rounds are taken": ("roles/server.py", "if message.round != round:", "if False:", ROUND),
    "missing scores are not missed": (
        "roles/server.py", "if tuple(evaluation.scores) != agreement.scored:", "if False:", CLIENT
    ),
    "nobody stands at the door": (
        "round.py", "door.admit(reply, self.state, self.agreement)", "pass", HISTORY
    ),
    "any number of items is admitted": (
        "roles/door.py", "if limits and update.n_train > limits.max_items:", "if False:", HISTORY
    ),
    "any number of steps is admitted": (
        "roles/door.py", "if limits and update.steps > limits.train.steps_of(update.n_train):", "if False:",
        "unit/test_door.py",
    ),
    "a change of any length is admitted": ("roles/door.py", "if norm > longest:", "if False:", "unit/test_door.py"),
    "elements that nobody sends are admitted": (
        "roles/door.py", "if bool((t.bool() & ~reach[name]).any()):", "if False:", "unit/test_door.py"
    ),
    "a lost state ends the run": ("round.py", 'lost = reply.code == "version" and', "lost = False and", ROUND),
    "a lost state is asked for without end": (
        "round.py", "and not any(failure.client == client for failure in self.failures)", "", ROUND
    ),
    "what cannot be read costs nothing": (
        "round.py", '            self._entries.append(Entry(self.round, client, "up", len(answer), {"unreadable": len(answer)}))\n',
        "", ROUND,
    ),
    "requests cost nothing": (
        "round.py", '        self._entries.append(Entry(self.round, client, "down", len(message.blob), message.parts))\n', "",
        HISTORY,
    ),
    "an engine may leave clients out": ("round.py", "if self._read != list(clients):", "if False:", ROUND),
    "a sample depends on the order of clients": (
        "round.py", "sorted(sorted(clients)[i] for i in drawn)", "sorted(clients[i] for i in drawn)", ROUND
    ),
    "every round has the same clients": (
        "round.py", 'stream(seed, "sample", round)', 'stream(seed, "sample")', ROUND
    ),
    "half a client is none": ("round.py", "int(fraction * n_clients + 0.5)", "int(fraction * n_clients)", ROUND),
    "a validation is charged to the next round": (
        "round.py", "(replace(entry, round=record.round) for entry in talk.ledger)", "talk.ledger", ROUND
    ),
    "who does not answer a validation is believed to know": (
        "round.py", "dict.fromkeys(scores, state.round)", "dict.fromkeys(clients, state.round)", ROUND
    ),
    # -- states and resuming ---------------------------------------------------------------------------------------
    "damage is not noticed": (
        "packing.py", "if len(blob) <= DIGEST or hashlib.blake2b(body, digest_size=DIGEST).digest() != digest:",
        "if len(blob) <= DIGEST:", PACKING,
    ),
    "fields that are not of the class are dropped": (
        "packing.py", "if set(tree) != set(declared):", "if False:", PACKING
    ),
    "a tensor in two places is written twice": ("packing.py", "if id(value) not in numbers:", "if True:", PACKING),
    "the order of names is lost": (
        "packing.py", "for key, one in value.items()]", "for key, one in sorted(value.items())]", PACKING
    ),
    "records are not checked": ("checkpoint.py", "if found not in state.lines:", "if False:", DISK),
    "a lost state is a new run": ("checkpoint.py", "if len(lines) > 1:", "if False:", DISK),
    "the state comes before the record that it counts": (
        "checkpoint.py", "        with naming(self._records):\n", "        self._write_state(state)\n        with naming(self._records):\n",
        DISK,
    ),
    "a torn record stays": ("checkpoint.py", "if self._records.is_file() and kept != self._text():", "if False:", DISK),
    "an amended record does not fit the state before": (
        "checkpoint.py", "self._write_state(replace(before, lines=(*before.lines, amended)))", "pass", DISK
    ),
    "a repeated round starts from its own end": ("checkpoint.py", "if n < before]", "if n <= before]", DISK),
    "no state is left for a repetition": ("checkpoint.py", "if n < round)[:-1]:", "if n < round):", DISK),
    "what a validation told is forgotten": (
        "checkpoint.py", "if self._read(client, n).trained > after:", "if True:", DISK
    ),
    "a client takes another one's state": ("checkpoint.py", "if state.client != client:", "if False:", DISK),
    "tensors of any shape are taken": (
        "checkpoint.py", "if expected is None or expected.shape != t.shape or expected.dtype != t.dtype:",
        "if expected is None:", DISK,
    ),
    "a changed config goes on": (
        "experiment.py", "            if begun.get(key) != now:", "            if False:", "test_resume.py"
    ),
    "what the server never used is kept at a site": (
        "site.py", "            store.forget(self.id, after=used)", "            pass", "test_site.py"
    ),
    "a site's folder is anybody's": ("site.py", "if found.get(key) != claim[key]:", "if False:", "test_site.py"),
    "only everybody's adapter is saved": (
        "experiment.py", "for name, group in main.state.groups.items():",
        "for name, group in [(EVERYBODY, main.state.everybody)]:", "test_run.py",
    ),
}  # fmt: skip
