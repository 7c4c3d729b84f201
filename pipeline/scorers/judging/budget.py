"""What judging has cost and how far it may go. The caps are of the store: a rerun does not begin at nothing."""

from pipeline.config import EngineConfig, ServiceRuntime
from pipeline.errors import StageError, pluralize
from pipeline.scorers.judging import Question, Reply
from pipeline.scorers.judging.verdict_cache import Spent, VerdictStore

MILLION = 1e6
OVERHEAD = 16  # tokens that a template puts around each message


class Budget:
    """A question is admitted only if it fits with the dearest end of all that are in flight."""

    def __init__(self, judge: str, cfg: EngineConfig, store: VerdictStore, knob: str):
        self.judge, self.store, self.knob, self.longest = (
            judge,
            store,
            f"{knob}.runtime",
            cfg.max_tokens,
        )
        paid = cfg.runtime if isinstance(cfg.runtime, ServiceRuntime) else None
        self.prices = paid.prices if paid else None
        self.max_requests = paid.max_requests if paid else None
        self.max_cost = paid.max_cost if paid else None
        self.requests = self.tokens = 0  # of this process, for those who watch it
        self.money = 0.0
        self._in_flight: dict[Question, float] = {}

    def against(self, question: Question) -> str:
        """The cap that one more question could break, if any."""
        if self.max_requests is None and self.max_cost is None:
            return ""
        spent = self.store.spent(self.judge)
        if (
            self.max_requests is not None
            and spent.requests + len(self._in_flight) >= self.max_requests
        ):
            return f"max_requests={self.max_requests}"
        owed = sum(self._in_flight.values()) + self._dearest(question)
        if self.max_cost is not None and self._money(spent) + owed > self.max_cost:
            return f"max_cost={self.max_cost:g}"
        return ""

    def admit(self, question: Question) -> None:
        self._in_flight[question] = self._dearest(question)

    def settle(self, question: Question, reply: Reply) -> None:
        del self._in_flight[question]
        self.requests += 1
        self.tokens += reply.tokens_in + reply.tokens_out
        self.money += self._money(Spent(1, reply.tokens_in, reply.tokens_out))

    def check(self, question: Question) -> None:
        """Asked with nothing in flight: a cap that stands in the way now ends the step."""
        if not (cap := self.against(question)):
            return
        spent = self.store.spent(self.judge)
        money = f", {self._money(spent):.2f} in money" if self.prices else ""
        raise StageError(
            f"{self.judge}: its next request could go beyond {self.knob}.{cap}. This store has sent it"
            f" {pluralize(spent.requests, 'request')}, {spent.tokens_in + spent.tokens_out} tokens{money}.\n"
            f"  All of its verdicts are kept. Raise {self.knob}.{cap.partition('=')[0]} and run the same command again."
        )

    def facts(self) -> dict[str, str]:
        money = {"money": f"{self.money:.2f}"} if self.prices else {}
        return {"requests": f"{self.requests}", "tokens": f"{self.tokens}", **money}

    def cost(self) -> dict[str, float]:
        money = {"money": round(self.money, 6)} if self.prices else {}
        return {"judge_requests": self.requests, "judge_tokens": self.tokens, **money}

    def _money(self, spent: Spent) -> float:
        if self.prices is None:
            return 0.0
        return (
            spent.tokens_in * self.prices.input + spent.tokens_out * self.prices.output
        ) / MILLION

    def _dearest(self, question: Question) -> float:
        """No token is shorter than a byte, and no reply longer than it may be."""
        read = sum(len(m["content"].encode()) + OVERHEAD for m in question.messages)
        return self._money(Spent(1, read, self.longest))
