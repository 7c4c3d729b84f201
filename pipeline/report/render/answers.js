"use strict";
// Unpacks the answers and shows those that match the form, a page at a time.
// Every text is inserted as text, never as HTML.
(async () => {
  const byId = id => document.getElementById(id);
  const form = byId("asked"), list = byId("found"), more = byId("more");
  if (!form || !window.DecompressionStream) return;
  const letters = atob(byId("packed").textContent), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { models, contests, prompts } = await new Response(stream).json();
  const PAGE = 20;
  const WINNER = { a: contest => contest.a, b: contest => contest.b, tie: () => "a tie" };
  let matches = [], shown = 0;

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const makeOption = (value, text) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  };
  const formatNumber = value => (value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
  const formatSigned = value => (value > 0 ? "+" : "") + formatNumber(value);
  const searchText = prompt => prompt.words ??=
    [prompt.prompt, ...prompt.answers.flat().map(answer => answer[0])].join("\n").toLowerCase();
  const hasFlip = orders => orders.some((verdict, place) =>
    place % 2 && verdict && orders[place - 1] && verdict !== orders[place - 1]);
  const findVerdict = prompt => prompt.verdicts[form.contest.value];

  contests.forEach((contest, place) => {
    const name = `${contest.a} against ${contest.b}, by ${contest.judge}`;
    form.contest.append(makeOption(place, name));
  });

  function fillWinners() {
    const contest = contests[form.contest.value], before = form.winner.value;
    form.winner.replaceChildren(makeOption("", "anyone"));
    if (!contest) return;
    const choices = [["a", contest.a], ["b", contest.b], ["tie", "a tie"]];
    if (prompts.some(prompt => findVerdict(prompt)?.[2].length))
      choices.push(["flip", "verdict depends on the order"]);
    form.winner.append(...choices.map(([value, text]) => makeOption(value, text)));
    if (choices.some(([value]) => value === before)) form.winner.value = before;
  }

  function isMatch(prompt, text, winner) {
    if (text && !searchText(prompt).includes(text)) return false;
    if (!winner) return true;
    const verdict = findVerdict(prompt);
    return Boolean(verdict) && (winner === "flip" ? hasFlip(verdict[2]) : verdict[0] === winner);
  }

  function update() {
    const text = form.text.value.trim().toLowerCase();
    const winner = form.winner.value, sort = form.sort.value;
    matches = prompts.filter(prompt => isMatch(prompt, text, winner));
    if (sort !== "asked") {
      const sign = sort === "won" ? -1 : 1;
      const sortKey = prompt => findVerdict(prompt) ? sign * findVerdict(prompt)[1] : Infinity;
      const keyed = matches.map(prompt => [sortKey(prompt), prompt]);
      keyed.sort((one, other) => one[0] === other[0] ? 0 : one[0] - other[0]);
      matches = keyed.map(pair => pair[1]);
    }
    const [count, all] = [matches, prompts].map(each => each.length.toLocaleString("en"));
    form.count.textContent = `${count} of ${all} prompts`;
    list.replaceChildren();
    shown = 0;
    showMore();
    if (list.firstChild && !text) list.firstChild.open = true;
  }

  function showMore() {
    list.append(...matches.slice(shown, shown + PAGE).map(makeEntry));
    shown = Math.min(shown + PAGE, matches.length);
    if (!matches.length) list.append(make("p", "none", "No prompt matches."));
    more.hidden = shown === matches.length;
  }

  function makeEntry(prompt) {
    const details = make("details", "example"), summary = make("summary");
    const verdict = findVerdict(prompt), margin = verdict ? verdict[1] : null;
    const tone = margin > 0 ? "up" : margin < 0 ? "down" : "soft";
    const gap = make("span", `gap ${tone}`, margin === null ? "–" : formatSigned(margin));
    summary.append(gap, make("span", "ask", prompt.prompt));
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1)
        details.append(makeVerdicts(prompt), makeAnswers(prompt));
    });
    return details;
  }

  function makeVerdicts(prompt) {
    const lines = make("ul", "judged");
    for (const [place, [verdict, , orders]] of Object.entries(prompt.verdicts)) {
      const contest = contests[place];
      const { a, b, judge } = contest;
      const name = side => side ? WINNER[side](contest) : "no verdict";
      const line = make("li", "", `${a} against ${b}, by ${judge}: `);
      line.append(make("b", "", name(verdict)));
      for (let pair = 0; pair < orders.length; pair += 2) {
        const [first, second] = [orders[pair], orders[pair + 1]].map(name);
        line.append(make("span", "soft", `; ${a} first: ${first}, ${b} first: ${second}`));
      }
      lines.append(line);
    }
    return lines;
  }

  function makeAnswers(prompt) {
    const grid = make("div", "answers");
    prompt.answers.forEach((answers, place) => {
      const box = make("div", `answer ${models[place].colour}`);
      const head = make("h4", "", models[place].name);
      const scores = answers.map(answer => answer[1]).filter(score => score !== null);
      const sum = scores.reduce((total, score) => total + score, 0);
      const score = scores.length ? formatNumber(sum / scores.length) : "no score";
      head.append(make("span", "", answers.length ? score : "no answer"));
      const texts = make("div", "scroll");
      texts.tabIndex = 0;
      for (const [text, , truncated] of answers) {
        const paragraph = make("p", "", text);
        if (truncated) paragraph.append(" ", make("span", "chip", "truncated"));
        texts.append(paragraph);
      }
      box.append(head, texts);
      grid.append(box);
    });
    return grid;
  }

  let typing;
  form.addEventListener("submit", event => event.preventDefault());
  form.text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(update, 120);
  });
  form.contest.addEventListener("change", () => { fillWinners(); update(); });
  form.winner.addEventListener("change", update);
  form.sort.addEventListener("change", update);
  more.addEventListener("click", showMore);
  if (!contests.length) {
    for (const name of ["contest", "winner", "sort"]) form[name].parentElement.hidden = true;
    form.sort.value = "asked";
  }
  fillWinners();
  update();
  byId("some").remove();
  for (const element of [form, list]) element.hidden = false;
  document.documentElement.dataset.ready = "answers";
})();
