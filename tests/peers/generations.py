"""What differs between the three generations of clients: keys, planner endpoints and seed metadata."""

import hashlib
import json
import math
from dataclasses import dataclass

from weights import Tensor


class Refused(Exception):
    """What a peer of this generation does not accept."""


@dataclass(frozen=True)
class Generation:
    """One generation of clients."""

    name: str
    removes: bool
    renews: bool
    # The numbers of fields of an entry that its readers take, and the number that its seeds serve.
    reads: tuple
    serves: int
    # Whether its seeds answer `/get_rfork_transfer_engine_shape_info` and `/rfork_fetch_seed`.
    has_old_urls: bool

    def key(self, model_url, strategy, engine):
        """The seed key of rank 0, without pipeline or expert parallelism. YuanRong is not named: it was there first."""
        named = engine != "yuanrong"
        if self.name == "A":
            return "$".join([model_url, strategy, "kv_both", "0", "0"] + [engine] * named)
        parts = {
            "compatibility_fingerprint": "f00",
            "model_url": model_url,
            "model_deploy_strategy_name": strategy,
            "tp_rank": 0,
            "pp_rank": None,
            "ep_rank": None,
        }
        if named:
            parts["engine"] = engine
        if self.name == "B":
            parts["is_draft_worker"] = False
        else:
            parts |= {"structural_digest": "beef", "sharded_dp_rank": None, "is_draft_model": False}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def info(self, session, tensors, extension):
        """What its seeds answer to the right key. `extension` is what the TCP engine needs besides, or None."""
        fields = lambda t: [t.address, t.count, t.element_bytes, list(t.shape), t.dtype][: self.serves]
        answer = {"rfork_transfer_engine_info": [session, {t.name: fields(t) for t in tensors}]}
        if self.name == "C":
            answer["rfork_protocol_version"] = 1
            answer["rfork_transfer_engine_format_info"] = {t.name: t.format for t in tensors}
        if extension is not None:
            dtypes = {} if self.serves == 5 else {"dtypes": {t.name: t.dtype for t in tensors}}
            answer["rfork_rs"] = extension | dtypes
        return answer

    def other_key(self):
        """What its seeds answer to another key."""
        answer = {"rfork_transfer_engine_info": None}
        if self.name == "C":
            answer |= {"rfork_protocol_version": 1, "rfork_transfer_engine_format_info": None}
        return answer

    def understand(self, answer, fetch_shapes):
        """Session and tensors of a seed's answer, as its readers take them. `fetch_shapes` asks the second URL."""
        if self.name == "C" and answer.get("rfork_protocol_version") != 1:
            raise Refused(f"protocol version {answer.get('rfork_protocol_version')}")
        formats = answer.get("rfork_transfer_engine_format_info")
        if self.name == "C" and not isinstance(formats, dict):
            raise Refused("no formats")
        if not isinstance(answer.get("rfork_transfer_engine_info"), list):
            raise Refused("another seed key")
        session, entries = answer["rfork_transfer_engine_info"]
        wrong = {len(entry) for entry in entries.values()} - set(self.reads)
        if wrong:
            raise Refused(f"entries of {sorted(wrong)} fields")
        shapes = answer.get("rfork_transfer_engine_shape_info")
        if self.name != "C" and not shapes and any(len(entry) == 3 for entry in entries.values()):
            shapes = fetch_shapes().get("rfork_transfer_engine_shape_info")
        tensors = []
        for name, (address, count, element_bytes, *more) in entries.items():
            shape = tuple(more[0] if more else shapes[name])
            if count < 1 or math.prod(shape) != count:
                raise Refused(f"{name}: shape {shape} for {count} elements")
            dtype = more[1] if len(more) > 1 else None
            form = formats[name] if self.name == "C" else None
            tensors.append(Tensor(name, address, count, element_bytes, shape, dtype, form))
        return session, sorted(tensors, key=lambda tensor: tensor.name.encode())

    def agree(self, ours, theirs):
        """Raises Refused unless a seed's tensors are the local ones, in all that this generation compares."""

        def compared(tensor):
            parts = [tensor.name, tensor.count, tensor.element_bytes, tensor.shape]
            return parts + ([tensor.dtype, tensor.format] if self.name == "C" else [])

        if [compared(tensor) for tensor in ours] != [compared(tensor) for tensor in theirs]:
            raise Refused("the seed's tensors are others")


GENERATIONS = {
    "A": Generation("A", removes=False, renews=False, reads=(3, 4), serves=3, has_old_urls=True),
    "B": Generation("B", removes=True, renews=False, reads=(3, 4, 5), serves=4, has_old_urls=True),
    "C": Generation("C", removes=True, renews=True, reads=(5,), serves=5, has_old_urls=False),
}
