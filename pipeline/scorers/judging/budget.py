"""What judging has cost and how far it may go.

The caps are per store: a rerun does not start from zero.
"""

from pipeline.config import EngineConfig, ServiceRuntime
from pipeline.errors import StageError, pluralize
from pipeline.scorers.judging import JudgeRequest, Response
from pipeline.scorers.judging.verdict_cache import BATCH, Spending, VerdictStore

MILLION = 1e6
BATCH_RATE = 0.5  # of a price: what OpenAI and Anthropic charge for batches
OVERHEAD = 16  # tokens that a template puts around each message


class JudgeBudget:
    """Admits a request only if it fits at the highest possible cost of all in flight."""

    def __init__(self, judge: str, cfg: EngineConfig, store: VerdictStore, knob: str):
        self.judge, self.store, self.knob = judge, store, f"{knob}.runtime"
        self.max_tokens, self.rate = cfg.max_tokens, BATCH_RATE if cfg.batch else 1.0
        runtime = cfg.runtime if isinstance(cfg.runtime, ServiceRuntime) else None
        self.prices = runtime.prices if runtime else None
        self.max_requests = runtime.max_requests if runtime else None
        self.max_cost = runtime.max_cost if runtime else None
        self.requests = self.tokens = 0  # of this process, for its progress line
        self.money = 0.0
        self._in_flight: dict[JudgeRequest, float] = {}

    def find_blocking_cap(self, request: JudgeRequest) -> str:
        """The cap that one more request could exceed, if any."""
        if self.max_requests is None and self.max_cost is None:
            return ""
        spent, money = self._read_spent()
        sent = spent.requests + len(self._in_flight)
        if self.max_requests is not None and sent >= self.max_requests:
            return f"max_requests={self.max_requests}"
        owed = sum(self._in_flight.values()) + self._bound_cost(request)
        if self.max_cost is not None and money + owed > self.max_cost:
            return f"max_cost={self.max_cost:g}"
        return ""

    def admit(self, request: JudgeRequest) -> None:
        self._in_flight[request] = self._bound_cost(request)

    def record(self, request: JudgeRequest, response: Response) -> None:
        del self._in_flight[request]
        self.count(response)

    def count(self, response: Response) -> None:
        self.requests += 1
        self.tokens += response.tokens_in + response.tokens_out
        spent = Spending(1, response.tokens_in, response.tokens_out)
        self.money += self._price(spent, self.rate)

    def check(self, request: JudgeRequest) -> None:
        """Call it with nothing in flight: a cap that blocks this request now ends the step."""
        if not (cap := self.find_blocking_cap(request)):
            return
        spent, paid = self._read_spent()
        money = f", {paid:.2f} in money" if self.prices else ""
        tokens = spent.tokens_in + spent.tokens_out
        raise StageError(
            f"{self.judge}: its next request could exceed {self.knob}.{cap}."
            f" This store has sent it {pluralize(spent.requests, 'request')}, {tokens}"
            f" tokens{money}.\n"
            f"  All of its verdicts are kept. Raise {self.knob}.{cap.partition('=')[0]}"
            " and run the same command again."
        )

    def describe(self) -> dict[str, str]:
        money = {"money": f"{self.money:.2f}"} if self.prices else {}
        return {"requests": f"{self.requests}", "tokens": f"{self.tokens}", **money}

    def get_cost(self) -> dict[str, float]:
        money = {"money": round(self.money, 6)} if self.prices else {}
        return {"judge_requests": self.requests, "judge_tokens": self.tokens, **money}

    def _read_spent(self) -> tuple[Spending, float]:
        """All that the store has sent to the model, one by one or by batch, and its price."""
        single = self.store.read_spending(self.judge)
        batched = self.store.read_spending(f"{self.judge}{BATCH}")
        spent = Spending(
            single.requests + batched.requests,
            single.tokens_in + batched.tokens_in,
            single.tokens_out + batched.tokens_out,
        )
        return spent, self._price(single, 1.0) + self._price(batched, BATCH_RATE)

    def _price(self, spent: Spending, rate: float) -> float:
        if self.prices is None:
            return 0.0
        inputs, outputs = (
            spent.tokens_in * self.prices.input,
            spent.tokens_out * self.prices.output,
        )
        return rate * (inputs + outputs) / MILLION

    def _bound_cost(self, request: JudgeRequest) -> float:
        """The most that a request can cost.

        A token is at least one byte long, and a response has at most max_tokens.
        """
        tokens_in = sum(len(m["content"].encode()) + OVERHEAD for m in request.messages)
        return self._price(Spending(1, tokens_in, self.max_tokens), self.rate)
