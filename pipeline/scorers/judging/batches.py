"""Asks by batch: one call of a command submits, a later one collects, at half the price.

Whatever happens in between, a request is in one batch at a time (see `batch_journal`), and each
response is saved as it is read. What a batch did not answer is submitted again, and nothing else.
"""

from collections.abc import Iterator, Mapping

from pipeline.config import AnthropicEngine, EndpointEngine
from pipeline.errors import StageError, UserError, WorkPending, pluralize
from pipeline.scorers.judging import JudgeRequest, Response
from pipeline.scorers.judging.batch_journal import BatchEntry, BatchJournal
from pipeline.scorers.judging.batch_services import BatchService, Outcome, open_service
from pipeline.scorers.judging.budget import JudgeBudget
from pipeline.scorers.judging.verdict_cache import VerdictSource

# Of one batch. OpenAI takes 50,000 requests and 200 MB, Anthropic 100,000 and 256 MB.
MAX_REQUESTS, MAX_CHARACTERS = 20_000, 50_000_000

Requests = dict[str, JudgeRequest]


class BatchCollector:
    def __init__(
        self,
        cfg: EndpointEngine | AnthropicEngine,
        form: str,
        knob: str,
        journal: BatchJournal,
        source: VerdictSource,
        budget: JudgeBudget,
    ):
        self.runtime, self.source, self.budget = cfg.runtime, source, budget
        self.journal = journal
        self.service: BatchService = open_service(cfg, form, knob)
        self._waiting: dict[str, int] = {}  # by batch, how many requests of this process
        self._tries: dict[str, int] = {}

    def collect(self, requests: Mapping[str, JudgeRequest]) -> dict[str, Response]:
        """The response to each request, by key. Raises WorkPending while one is missing."""
        faults = self.journal.load_collected(requests)
        responses = {key: Response(None, fault=fault) for key, fault in faults.items() if fault}
        waiting = set[str]()
        for batch in self.journal.list_batches(requests):
            if (found := self._read_batch(batch)) is not None:
                responses |= found
                continue
            own = batch.requests.keys() & requests.keys()
            waiting |= own
            self._waiting[batch.id or batch.token] = len(own)
            for key in own:  # paid for when it ends: a cap counts it
                self.budget.admit(requests[key])
        answered = responses.keys() & requests.keys()
        missing = {k: r for k, r in requests.items() if k not in answered | waiting}
        blocked = self._submit_missing(missing)
        if blocked and not self._waiting:
            self.budget.check(blocked)
        if missing or waiting:
            raise WorkPending(self._describe_waiting())
        return {key: responses[key] for key in requests}

    def _read_batch(self, batch: BatchEntry) -> dict[str, Response] | None:
        """The responses of a batch; None while it has not ended."""
        if self.journal.is_being_submitted(batch):
            return None
        batch_id = batch.id
        if batch_id is None:
            batch_id = self.service.find_batch(batch, self.journal.list_ids())
            if batch_id is None:  # it was never submitted
                self.journal.close_batch(batch.token)
                return {}
            self.journal.name_batch(batch.token, batch_id)
        status = self.service.fetch_status(batch_id)
        if not status.is_ended:
            return None
        if status.fault:
            self.journal.close_batch(batch.token)
            raise StageError(
                f"{self.source.judge} at {self.runtime.base_url}: the service did not accept batch"
                f" {batch_id} ({status.fault}).\n"
                "  Nothing of it was paid for. Remove the cause and run the same command again."
            )
        found: dict[str, Response] = {}
        for outcome in self.service.read_outcomes(status):
            if self._settle(batch, outcome):
                found[outcome.key] = outcome.response
        self._tries |= {key: request.tries for key, request in batch.requests.items()}
        self.journal.close_batch(batch.token)
        self._waiting.pop(batch_id, None)
        return found

    def _settle(self, batch: BatchEntry, outcome: Outcome) -> bool:
        """Save a response. False: the request is sent again, or was never of this batch."""
        request = batch.requests.get(outcome.key)
        if request is None or (outcome.is_open and request.tries <= self.runtime.retries):
            return False
        if self.journal.settle(request, outcome.response):
            self.budget.count(outcome.response)
        return True

    def _submit_missing(self, requests: Requests) -> JudgeRequest | None:
        """Submit what fits into the caps. Returns the first request that does not."""
        for part in _split(requests):
            admitted: Requests = {}
            blocked = None
            for key, request in part.items():
                if self.budget.find_blocking_cap(request):
                    blocked = request
                    break
                self.budget.admit(request)
                admitted[key] = request
            self._submit(admitted)
            if blocked:
                return blocked
        return None

    def _submit(self, requests: Requests) -> None:
        token, free = self.journal.open_batch(self.source, requests, self._tries)
        if elsewhere := len(requests) - len(free):
            self._waiting["of another run"] = elsewhere
        if not free:
            return
        try:
            batch_id = self.service.submit(token, free)
        except UserError:  # the service made no batch
            self.journal.close_batch(token)
            raise
        self.journal.name_batch(token, batch_id)
        self._waiting[batch_id] = len(free)

    def _describe_waiting(self) -> str:
        names = ", ".join(self._waiting)
        verdicts = pluralize(sum(self._waiting.values()), "verdict")
        return (
            f"{self.source.judge} at {self.runtime.base_url}: {verdicts} wait in a batch ({names})."
            " A batch takes up to 24 hours.\n"
            "  Run the same command again to collect them; nothing is paid for twice."
        )

    def close(self) -> None:
        self.service.close()


def _split(requests: Requests) -> Iterator[Requests]:
    """Parts that a service takes in one batch."""
    part, characters = Requests(), 0
    for key, request in requests.items():
        size = sum(len(message["content"]) for message in request.messages)
        if part and (len(part) == MAX_REQUESTS or characters + size > MAX_CHARACTERS):
            yield part
            part, characters = {}, 0
        part[key] = request
        characters += size
    if part:
        yield part
