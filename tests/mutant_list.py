"""Errors to put into the code on purpose; ``mutants`` does it."""

from __future__ import annotations

ERRORS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("adapter.py", "unit/test_adapter.py"): {
        "means drop weights": ("scaled = t.double() * weight", "scaled = t.double()"),
        "a pruned rank that does something is lost": (
            "used = down.any(1) & up.any(0)",
            "used = down.all(1) & up.all(0)",
        ),
    },
    ("answers.py", "test_answers.py"): {
        "an answer replaces a field of the row": ("if ANSWER in row.values:", "if False:"),
        "a chat forgets its answers": (
            'turns = [*asked, {"role": "assistant", "content": answer}]',
            "turns = asked",
        ),
        "a reset keeps the chat": ("turns = list(start)\n            say", "say"),
    },
    ("checkpoint.py", "unit/test_checkpoint.py"): {
        "a repeated round starts from its own end": ("if n < before]", "if n <= before]"),
        "the state before the last is not kept": ("if n < round)[:-1]:", "if n < round):"),
        "forgetting reads no locked state": (
            "blob = self._vault.unlock(path.read_bytes(), path)",
            "blob = path.read_bytes()",
        ),
    },
    ("compare/statistics.py", "unit/test_compare.py"): {
        "a bootstrap draws seeds alone": ("values[clients].mean(axis=1)", "values.mean()"),
    },
    ("config/keys.py", "unit/test_config.py"): {
        "a flag may mean two keys": ("by_leaf.items() if len(found) == 1}", "by_leaf.items()}"),
    },
    ("config/schema.py", "unit/data/test_load_items.py"): {
        "own files are pooled": ('"kind" not in self.partition.model_fields_set', "False"),
    },
    ("config/section.py", "unit/test_config.py"): {
        "an unknown key is ignored": ('extra="forbid"', 'extra="ignore"'),
    },
    ("data/asked.py", "unit/data/test_asked.py"): {
        "an answer is asked for again": (
            'if said[-1][0] == "assistant":',
            "if False:",
        ),
    },
    ("data/batches.py", "unit/data/test_batches.py"): {
        "batches are of any length": ('= mega[np.argsort(size[mega], kind="stable")]', "= mega"),
    },
    ("data/codebooks.py", "unit/data/test_codebooks.py"): {
        "all clusters keep their labels": ("cluster = number % CLUSTERS", "cluster = 0"),
    },
    ("data/formats.py", "unit/data/test_formats.py"): {
        "an answer that may mean two options is taken": ("if len(found) > 1:", "if False:"),
        "given labels are sorted": ("tuple(given) or in_order(counts)", "in_order(counts)"),
    },
    ("data/load.py", "unit/data/test_load_items.py"): {
        "more options than letters are taken": ("refuse_too_many(place, items)", "pass"),
        "one label has two letters": ("refuse_conflicts(labelled)", "pass"),
    },
    ("data/partition.py", "unit/data/test_partition.py"): {
        "items of one group go to others, too": (
            "pool = generator.permutation(np.flatnonzero(value == v))",
            "pool = generator.permutation(np.flatnonzero(value >= v))",
        ),
        "dirichlet's concentration is always 1": ("np.full(n_clients, alpha)", "np.full(n_clients, 1.0)"),
    },
    ("data/rows.py", "unit/data/test_formats.py"): {
        "lines that are no JSON are left out": ('faults.append(f"{row.where}: {row.fault}")', "pass"),
    },
    ("data/split.py", "unit/data/test_split.py"): {
        "copies are on both sides of the split": (
            "groups.setdefault(content, []).append(k)",
            "groups.setdefault(k, []).append(k)",
        ),
        "a split takes no training items from a client of copies": (
            "if free > 0 and len(taken) + len(group) <= wanted:",
            "if len(taken) + len(group) <= wanted:",
        ),
    },
    ("data/files.py", "unit/data/test_files.py"): {
        "a row of CSV is named by its last line": (
            'f"{path}:{line}", reader.line_num + 1',
            'f"{path}:{reader.line_num}", 1',
        ),
        "of two values of one key the last is taken": ("if len(found) < len(pairs):", "if False:"),
        "a file in UTF-16 is not noticed": ("if raw.startswith(UTF_16):", "if False:"),
    },
    ("data/formats.py", "unit/data/test_chats.py"): {
        "columns may be used in part": ("and {*columns} <= {*own.keys, *own.more}", ""),
        "an error names a column as capfl does": ("if key not in columns:", "if True:"),
    },
    ("experiment.py", "test_text_runs.py"): {
        "a run begins on no day": ("    config = dated(config)\n", ""),
    },
    ("experiment.py", "test_resume.py"): {
        "a changed config goes on": ("            if begun.get(key) != now:", "            if False:"),
    },
    ("experiment.py", "test_run.py"): {
        "only everybody's adapter is saved": (
            "for name, group in main.state.groups.items():",
            "for name, group in [(EVERYBODY, main.state.everybody)]:",
        ),
    },
    ("files.py", "unit/test_files.py"): {
        "a crash leaves half a file": ("os.replace(work, path)", "path.write_bytes(data)"),
    },
    ("maths/budget.py", "unit/maths/test_budget.py"): {
        "the smallest remainders are rounded up": ("np.argsort(-remainders", "np.argsort(remainders"),
    },
    ("maths/fourier.py", "unit/maths/test_fourier.py"): {
        "the kernel has no width": ("@ omega.T / frame.sigma", "@ omega.T"),
        "features are centred and not scaled": ("- frame.centre) / frame.spread @", "- frame.centre) @"),
    },
    ("maths/gamma.py", "unit/maths/test_gamma.py"): {
        "KL has its rates the wrong way round": ("a * (b0 / b - 1)", "a * (b / b0 - 1)"),
        "E[1/kappa] is 1/E[kappa]": ("self.beta / (self.alpha - 1)", "self.beta / self.alpha"),
    },
    ("maths/huber.py", "unit/maths/test_huber.py"): {
        "huber has one delta": ("beta=delta", "beta=1.0"),
    },
    ("maths/modulator.py", "unit/maths/test_modulator.py"): {
        "the modulator moves alpha, not alpha - 1": (
            "1 + (prior.alpha - 1) * v_alpha.exp()",
            "prior.alpha * v_alpha.exp()",
        ),
        "the modulator sees no features": ("@ z.double())", "@ torch.ones_like(z).double())"),
    },
    ("maths/peers.py", "unit/maths/test_peers.py"): {
        "distances of peers keep the bias of small samples": (" - (1 / items[:, None] + 1 / others[None, :])", ""),
        "agreement keeps the noise that a client shares with itself": (
            "(w[told] ** 2).sum(1) - (1 - 1 / answers[told]) / np.maximum(items - 1, 1)",
            "(w[told] ** 2).sum(1)",
        ),
    },
    ("maths/privacy.py", "unit/methods/test_private.py"): {
        "epsilon is of another number of rounds": (
            "GaussianDpEvent(noise_multiplier), rounds)",
            "GaussianDpEvent(noise_multiplier), 1)",
        ),
    },
    ("maths/products.py", "unit/methods/test_combine.py"): {
        "products drop weights": ("w / total * part", "1 / len(parts) * part"),
        "a mean product swaps A and B": (
            "self._sums[name] = (up * weight) @ down",
            "self._sums[name] = (down.T * weight) @ up.T",
        ),
    },
    ("methods/combine.py", "unit/methods/test_combine.py"): {
        "fedex-lora averages factors and no more": (
            "algebra.add(self._adapter, mean | missed)",
            "algebra.add(self._adapter, mean)",
        ),
        "fedex-lora drops a client's weight": (
            "self._products.add(algebra.subtract(whole, self._first), weight)",
            "self._products.add(algebra.subtract(whole, self._first), 1.0)",
        ),
    },
    ("methods/factors.py", "unit/methods/test_factors.py unit/methods/test_table.py"): {
        "rolora trains both": (
            'Factors("B in odd rounds, A in even ones", ("B", "A"), "AB")',
            'Factors("B in odd rounds, A in even ones", ("AB",), "AB")',
        ),
        "fedsa-lora sends B": (
            '"A; B stays with the client", ("AB",), "A"',
            '"A; B stays with the client", ("AB",), "B"',
        ),
    },
    ("methods/method.py", "conformance/test_history.py"): {
        "a client with peers keeps nothing for when it is alone": (
            "        if self.grouping.describes:  # it may be alone",
            "        if False:  # it may be alone",
        ),
    },
    ("methods/method.py", "unit/test_client.py"): {
        "training starts where the run began": ("else own | memory.known", "else memory.known | own"),
    },
    ("methods/order.py", "unit/methods/test_order.py"): {
        "the order is the same in every round": ('stream(seed, "order", name, round)', 'stream(seed, "order", name)'),
        "the last turn is of all that are left": ("place * n // len(group)", "min(place, n - 1)"),
    },
    ("methods/peers.py", "conformance/test_history.py"): {
        "a client that knows no peers starts from everybody's adapter": (
            "return n == 0 or (n == 1 and memory.trained > 0)",
            "return n == 1 and memory.trained > 0",
        ),
    },
    ("maths/placing.py", "unit/methods/test_peers.py"): {
        "nobody is near enough": ("& (mean <= rule.near)", "& (mean <= -1e9)"),
    },
    ("methods/posterior.py", "unit/methods/test_posterior.py"): {
        "the prior stands still": ("PRIOR_STEP = 0.5", "PRIOR_STEP = 0.0"),
        "no regulariser": ("self.alpha_s / n_train * _memory(memory)", "0.0 * _memory(memory)"),
        "kappa sees no features": ("(torch.ones(1), 1) if z is None else (z, self.hidden)", "(torch.ones(1), 1)"),
    },
    ("methods/private.py", "unit/methods/test_private.py"): {
        "private changes are not clipped": (
            "share = min(1.0, self._of.clip / max(algebra.norm(heard), self._of.clip))",
            "share = 1.0",
        ),
        "private noise does not grow with the clip": ("of.noise * of.clip * gaussian", "of.noise * gaussian"),
    },
    ("methods/ranks.py", "conformance/test_history.py"): {
        "all clients have the ranks of the first": (
            "first_ranks(self.shares[i % len(self.shares)], initial)",
            "first_ranks(self.shares[0], initial)",
        ),
    },
    ("methods/robust.py", "unit/methods/test_robust.py"): {
        "the median is a mean": (".values[cut : n - cut]", ".values"),
        "clipping lengthens short changes": ("change if norm <= longest else algebra.scaled", "algebra.scaled"),
    },
    ("methods/take_home.py", "unit/methods/test_take_home.py"): {
        "ditto's own adapter is not held near the server's": (
            "return proximal(self.strength, received)",
            "return proximal(0.0, received)",
        ),
    },
    ("engines/flower/addresses.py", "network/test_addresses.py"): {
        "the loopback goes through a proxy": ("[*given, *LOCAL, *map(bare, hosts)]", "[*given, *map(bare, hosts)]"),
        "an IPv6 address has no brackets": ('if ":" in bare(host) else', 'if "[" in host else'),
    },
    ("model/accept.py", "unit/model/test_accept.py"): {
        "an encoder is a base": ('not getattr(config, "is_decoder", True)', "False"),
        "a head for classes is a base": ("if OTHER_HEAD.search(architecture):", "if False:"),
        "scaled positions do not count": ("*(_scaled(own, scaling) for scaling in _scalings(text)), 0", "0"),
    },
    ("model/probe.py", "unit/model/test_probe.py"): {
        "a model that reads ahead is a base": ("apart(together[0, :SAME], together[1, :SAME]) > limit", "False"),
        "padding may change logits": ("apart(together[0, :SAME], alone[0]) > limit", "False"),
        "a token without an embedding is taken": ("if highest >= rows:", "if highest > rows:"),
    },
    ("model/layers.py", "unit/model/test_layers.py"): {
        "routers are adapted unasked": ("return not _is_router(name)", "return True"),
        "names that PEFT takes for experts are adapted": ("if _last(name) not in taken", "if name"),
        "layers for images are adapted": ("for whole in (decoder, module):", "for whole in (module,):"),
    },
    ("model/lora.py", "unit/model/test_lora.py"): {
        "a cut is not checked": ("and _same(own, split)", "and split is not None"),
        "an adapter that changes nothing is kept": (
            "idle = [name for name in shapes if name not in called",
            "idle = [name for name in shapes if name in ()",
        ),
    },
    ("model/kinds.py", "unit/test_export.py"): {
        "an adapter on a changed base is taken for LoRA": ("if init not in PLAIN_INITS:", "if False:"),
        "a setting that is not known is ignored": ("if name in HARMLESS or", "if name not in NAMES or"),
    },
    ("model/export.py", "unit/test_export.py"): {
        "an adapter of fewer ranks is scaled up": ("config.lora_alpha * rank / config.r for", "config.lora_alpha for"),
        "rsLoRA is read as LoRA": ("math.sqrt(rank) if config.use_rslora else rank", "rank"),
    },
    ("model/features.py", "unit/model/test_features.py"): {
        "a description sees the answer": ("int(rows[i].positions[0]) + 1", "end"),
        "states are bound without their mean taken off": ("centred = states - states.mean(0)", "centred = states"),
    },
    ("model/generate.py", "unit/model/test_generate.py"): {
        "recurrent layers read padding": ("mixed = unlike and ignores_padding(model.base)", "mixed = unlike"),
        "padding is seen": (
            "mask[n, longest - len(row) :] = row, 1",
            "mask[n, :] = row, 1",
        ),
        "a generation config has its way": ("module.generation_config = config", "pass"),
        "rows draw the same numbers": ('stream(seed, "generate", row)', 'stream(seed, "generate")'),
        "the likeliest tokens are one too many": ("(sums[:, :-1] < top_p)", "(sums[:, :-1] <= top_p + 0.1)"),
        "answers go on behind their end": ("if token in stops), len(tokens))", "if False), len(tokens))"),
    },
    ("model/gguf_file.py", "unit/model/test_gguf_file.py"): {
        "other ranks are misscaled": ("up * (len(down) / saved.r)", "up"),
        "k has the heads of q": (
            '"k_proj": config.num_key_value_heads',
            '"k_proj": config.num_attention_heads',
        ),
        "q and k stay in transformers' order": ("if kind.reorders:", "if False:"),
    },
    ("model/hidden.py", "unit/model/test_hidden.py"): {
        "the cache has no limit": ("if self.used_bytes + n_bytes > self.limit_bytes:", "if False:"),
        "another model's hidden states are used": ("blake2b(self._fingerprint(model), ", "blake2b("),
    },
    ("model/merged.py", "unit/model/test_merged.py"): {
        "an adapter is merged into any base": ("if card:", "if False:"),
    },
    ("metrics.py", "unit/test_metrics.py"): {
        "a perplexity of more is better": (
            "return mine - other if self.is_share else other - mine",
            "return mine - other",
        ),
        "what a function gives is not looked at": ("if not 0 <= value <= 1:", "if False:"),
        "case does not count in exact answers": (
            "answer.split() == right.split()",
            "answer.lower().split() == right.lower().split()",
        ),
    },
    ("model/parts.py", "unit/model/test_parts.py"): {
        "training keeps all logits": ("checkpoint(loss, *part, use_reentrant=False)", "loss(*part)"),
        "the loss of parts is no mean": ("torch.stack(sums).sum() / n", "torch.stack(sums).mean()"),
    },
    ("model/chat.py", "unit/model/test_chat.py"): {
        "a chat may be asked for otherwise than it was trained on": ("whole.startswith(before) and ", ""),
        "answers of the prompt are trained on": ("max(given, min(users, default=last))", "min(users, default=last)"),
        "the date of a chat template is today's": ("text = _NOW.sub(", "text = own or _NOW.sub("),
        "the newest turns of a long chat are lost": ("return [*lead, *messages[i:]]", "return [*lead, *messages[:i]]"),
        "a system message that has no role is lost": ("[*messages[:n_system], messages[at]]", "[messages[at]]"),
    },
    ("model/text.py", "unit/model/test_chat.py"): {
        "letters of a special token are the token": ("tokenizer(text, split_special_tokens=True)", "tokenizer(text)"),
        "a piece of a chat begins with a space": ('lead = "\\n" if inside else ""', 'lead = ""'),
    },
    ("model/score.py", "unit/model/test_score.py"): {
        "long options are unlikely": ("total / len(row.targets)", "total"),
        "the loss of letters is over the whole vocabulary": ("torch.log_softmax(own, -1)[e.right]", "own[e.right]"),
    },
    ("model/tokens.py", "unit/model/test_chat.py"): {
        "a text loses its first token where it is cut": (
            "begin = starts_with(tokenizer) if head[:1] == [tokenizer.bos_token_id] else []",
            "begin: list[int] = []",
        ),
        "answers are learnt a position too late": ("at = [k - 1 for first, end", "at = [k for first, end"),
        "an answer without its end ends": (
            "for first, end in talk.answers if first < fit.max_length]",
            "for first, end in talk.answers]",
        ),
    },
    ("model/tokens.py", "unit/model/test_tokens.py"): {
        "a long prompt loses its end": ("head[len(head) - room + len(begin) :]", "head[: room - len(begin)]"),
        "the model does not learn to stop": (
            "return answer if answer and answer[-1] == eos else [*answer, eos]",
            "return answer",
        ),
    },
    ("model/train.py", "parity/test_same_bits.py"): {
        "weights decay": ("weight_decay=0.0", "weight_decay=0.01"),
    },
    ("model/train.py", "unit/model/test_train.py"): {
        "gradients are not clipped": ("torch.nn.utils.clip_grad_norm_(live.values(), config.max_grad_norm)", "pass"),
        "a penalty does not go by the schedule": ("constants, learning_rate)", "constants, config.learning_rate)"),
    },
    ("packing.py", "unit/test_packing.py"): {
        "a flipped byte of a state is read": ("hashlib.blake2b(body, digest_size=DIGEST).digest() != digest", "False"),
        "fields that are not of the class are dropped": ("if set(tree) != set(declared):", "if False:"),
    },
    ("plan/memory.py", "unit/test_plan.py"): {
        "a plan leaves no memory to spare": ("fits=ABOVE * needed <= room", "fits=needed <= room"),
    },
    ("plan/traffic.py", "unit/test_plan.py"): {
        "a plan knows of no missed rounds": (
            "known, newest = self._known.get(client, 0), len(self._until) - 1",
            "known, newest = max(0, len(self._until) - 2), len(self._until) - 1",
        ),
        "a plan relays one update a round": (
            "sum(relayed, _parts({})) - _parts({}, HEAD * (len(turn) - 1))",
            "relayed[0]",
        ),
        "a plan charges clients for their own updates": ("if self._own.get(client) == known + 1:", "if False:"),
    },
    ("report/summary.py", "test_report.py"): {
        "a ledger that does not add up is shown": (
            'said["bytes"][direction] != summary.total_bytes(direction)',
            "False",
        ),
    },
    ("report/summary.py", "unit/test_tables.py"): {
        "any loss against local-only is a clear one": ("return -self.gain > Z95 * error", "return -self.gain > 0"),
    },
    ("rng.py", "unit/test_rng.py"): {
        "1 and '1' are one stream": ("map(repr, keys)", "map(str, keys)"),
        "torch's generator stays seeded": ("with torch.random.fork_rng():", "if True:"),
    },
    ("roles/agreement.py", "conformance/test_history.py"): {
        "clients add relayed updates without their weights": ("number), float(weight))", "number), 1.0)"),
    },
    ("roles/agreement.py", "unit/test_client.py"): {
        "servers that rewrite answer by the mask": ("if self._scaled_again:", "if False:"),
    },
    ("rounds.py", "test_metrics.py"): {
        "a run never ends early": ("if last - best.round < patience or", "if True or"),
        "the last round is an early end, too": (" or len(records) >= config.federation.rounds:", ":"),
    },
    ("site.py", "test_metrics.py"): {
        "a site calls what it has not allowed": ("and name not in config.runtime.own_metrics]", "and False]"),
    },
    ("engines/flower/client_app.py", "network/test_apps.py"): {
        "a server allows functions at its sites": ('{"runtime.own_metrics": [], **json', "{**json"),
    },
    ("roles/client.py", "conformance/test_history.py"): {
        "the residual is not added": ("compensate(change, memory.residual,", "compensate(change, {},"),
    },
    ("roles/client.py", "unit/test_client.py unit/test_turns.py"): {
        "masks are drawn by the round": ("message.version + 1", "message.round"),
        "the worst of its models is kept": ("not loss < memory.best_loss:", "not loss > memory.best_loss:"),
        "a residual is not kept": ("residual=residual,", "residual={},"),
    },
    ("roles/door.py", "unit/test_door.py"): {
        "any number of items comes in": ("and n_train > limits.max_items:", "and False:"),
        "the door goes by the masks of turn 1": ("state.version + 1, importance", "state.round + 1, importance"),
        "any number of steps comes in": (
            "if limits and update.steps > limits.train.steps_of(update.n_train):",
            "if False:",
        ),
        "an update of any length comes in": ("if norm > longest:", "if False:"),
    },
    ("roles/server.py", "conformance/test_history.py"): {
        "a group learns from nobody": (
            "for name in dict.fromkeys((EVERYBODY, state.group_name(update.client))):",
            "for name in (EVERYBODY,):",
        ),
        "two updates of a turn are passed on as one": (
            "len(self._bodies[group]) == 1 and combine.passes_one",
            "len(self._bodies[group]) > 0 and combine.passes_one",
        ),
    },
    ("roles/server.py", "unit/test_client.py unit/test_turns.py"): {
        "missing scores are not missed": ("if tuple(evaluation.scores) != agreement.scored:", "if False:"),
        "who comes into a group is believed to know its adapter": ("(new, lost)", "(new, set())"),
        "what a client has made of itself is not forgotten": ("versions=versions, own=own)", "versions=versions)"),
        "nothing is relayed": ("return len(self._bodies[group]) == 1 and", "return False and"),
    },
    ("round.py", "conformance/test_history.py"): {
        "every turn starts where the round began": ("talk.state = aggregation.state", "pass"),
        "nobody stands at the door": ("door.admit(reply, self.state, self.agreement)", "0.0"),
        "requests cost nothing": (
            '        self._entries.append(Entry(self.round, client, "down", len(message.blob), message.parts))\n',
            "",
        ),
    },
    ("round.py", "unit/test_round.py"): {
        "a client that failed is sent a difference": (
            "again = any(failure.client == client for failure in self.failures)",
            "again = False",
        ),
        "stop skips": ('self.config.on_failure == "stop"', "False"),
    },
    ("round.py", "unit/test_introductions.py unit/test_turns.py"): {
        "who introduces itself at the second try is left out": ("in unknown]", "in [f.client for f in met.failures]]"),
        "introductions pass the door": ("door.admit_introduction(reply, self.agreement)", "pass"),
        "all turns start from the same state": ("        talk.state = aggregation.state\n", ""),
    },
    ("site.py", "test_site.py"): {
        "what the server never used is kept at a site": (
            "            store.forget(self.id, after=used)",
            "            pass",
        ),
        "a site's folder is anybody's": ("if found.get(key) != claim[key]:", "if False:"),
    },
    ("vault.py", "unit/test_vault.py"): {
        "all files have one nonce": ("nonce = os.urandom(_NONCE)", "nonce = bytes(_NONCE)"),
        "a file in clear is taken for an encrypted run's": (
            "        if not blob.startswith(MAGIC):\n",
            "        if not blob.startswith(MAGIC):\n            return blob\n        if False:\n",
        ),
    },
    ("wire/body.py", "unit/wire/test_codec.py unit/wire/test_message.py"): {
        "a body of any length is read": ("if len(body) > most:", "if False:"),
    },
    ("wire/body.py", "unit/wire/test_importance.py"): {
        "positions are taken where ranks are": (
            "if Section.POSITIONS in found and Section.RANKS in found:",
            "if False:",
        ),
    },
    ("wire/budget.py", "unit/wire/test_importance.py"): {
        "a faint rank has no importance at all": (
            "np.maximum(numbers[marked] / numbers.max(), _LEAST)",
            "numbers[marked] / numbers.max()",
        ),
        "importance may be of other ranks": ("if len(marked) != n or marked.sum() != len(said.values):", "if False:"),
    },
    ("wire/codec.py", "unit/wire/test_codec.py"): {
        "unbiased codecs do not scale what is left": (
            "if self.scales and np.count_nonzero(flat) > np.count_nonzero(flat[kept]):",
            "if False:",
        ),
    },
    ("wire/codec.py", "unit/wire/test_codec.py unit/wire/test_importance.py"): {
        "the reach of a mask is everything": (
            "kept = self._drawn(layout, whole, number, budget)\n        if kept",
            "kept = None\n        if kept",
        ),
    },
    ("wire/downlink.py", "unit/wire/test_downlink.py"): {
        "a client that missed rounds is sent the last difference": (
            "n_missed = state.version - version",
            "n_missed = min(1, state.version - version)",
        ),
        "a client applies its own update anywhere": ("version == memory.version + 1 and memory.sent", "memory.sent"),
        "what the downlink lost is lost": (
            "algebra.subtract(target, group.known)",
            "algebra.subtract(target, group.adapter)",
        ),
    },
    ("wire/header.py", "unit/wire/test_message.py"): {
        "checksums are not checked": (
            "if _CRC.unpack_from(blob, len(blob) - _CRC.size)[0] != zlib.crc32(",
            "if 0 and zlib.crc32(",
        ),
        "messages for other adapters are taken": ("if hashed != schema:", "if False:"),
    },
    ("wire/layout.py", "unit/wire/test_layout.py"): {
        "B is written as A is": ('return int(name.endswith(".B"))', "return 0"),
    },
    ("wire/positions.py", "unit/wire/test_positions.py"): {
        "what is rarer is not listed": ("if 2 * len(kept) > size:", "if False:"),
        "a position may be beyond the vector": (
            "np.minimum(rice.read(data[_HEAD:], min(n, size - n)), size)",
            "rice.read(data[_HEAD:], min(n, size - n)) % size",
        ),
    },
    ("wire/records.py", "unit/wire/test_records.py"): {
        "the fields of a record come in any order": ("if place <= last:", "if False:"),
        "a field of a record may be missing": ("if name not in found and not optional:", "if False:"),
    },
    ("wire/rice.py", "unit/wire/test_rice.py"): {
        "Rice codes are longer than they need be": (
            "min(MAX_K, max(0, 1 + math.floor(",
            "min(MAX_K, max(0, 2 + math.floor(",
        ),
        "spare bits of numbers may be anything": ("if bits[n * width :].any():", "if False:"),
    },
    ("wire/scales.py", "unit/wire/test_values.py"): {
        "a scale may be infinite": ("(codes < 0).any() or (codes > self._largest).any()", "(codes < 0).any()"),
    },
    ("wire/scores.py", "unit/wire/test_scores.py"): {
        "more may be right than there are": ("if not 0 <= sum <= count or (", "if ("),
        "a perplexity may be another than the loss": ("if (sum, count) != (loss.sum, loss.count):", "if False:"),
        "sites of other metrics are heard": ("if self.agreed.tolist() != [checksum(names)]:", "if False:"),
        "a rank may be above the agreed one": ("if not _is_count(rank) or rank > largest:", "if not _is_count(rank):"),
    },
    ("wire/sections.py", "unit/wire/test_sections.py unit/wire/test_message.py"): {
        "the ledger takes positions for values": ('Section.POSITIONS: "positions",', 'Section.POSITIONS: "values",'),
    },
    ("wire/select.py", "unit/wire/test_select.py"): {
        "the mask stands still": ("np.uint32(number * width % _CIRCLE)", "np.uint32(0)"),
        "the mask of a part is drawn for that part": (
            "place = _places(whole, seed)[_within(layout, whole)]",
            "place = _places(layout, seed)",
        ),
    },
    ("wire/values.py", "unit/wire/test_codec.py unit/wire/test_values.py"): {
        "unbiased ternary values have the mean magnitude": ("        if unbiased:\n", "        if False:\n"),
        "ternary zeros are all positive": ("(values < 0) | ((values == 0) & (kept % 2 == 1))", "values < 0"),
    },
}
