"use strict";
// Unpacks the answers and shows those that are asked for, a page at a time. Every text is written as text.
(async () => {
  const at = id => document.getElementById(id);
  const form = at("asked"), list = at("found"), more = at("more");
  if (!form || !window.DecompressionStream) return;
  const letters = atob(at("packed").textContent), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  const whole = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { models, contests, prompts } = await new Response(whole).json();
  const PAGE = 20, SAID = { a: contest => contest.a, b: contest => contest.b, tie: () => "a tie" };
  let found = [], shown = 0;

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const option = (value, text) => { const made = make("option", "", text); made.value = value; return made; };
  const number = value => Math.abs(value).toFixed(3);
  const signed = value => (value > 0 ? "+" : value < 0 ? "−" : "") + number(value);
  const plain = value => (value < 0 ? "−" : "") + number(value);
  const words = prompt => prompt.words ??= [prompt.prompt, ...prompt.answers.flat().map(answer => answer[0])].join("\n").toLowerCase();
  const flips = orders => orders.some((said, place) => place % 2 && said && orders[place - 1] && said !== orders[place - 1]);
  const verdict = prompt => prompt.verdicts[form.contest.value];
  const winner = told => SAID[told[0]](contests[form.contest.value]);

  contests.forEach((each, place) => form.contest.append(option(place, `${each.a} against ${each.b}, by ${each.judge}`)));

  function ask() {
    const contest = contests[form.contest.value], before = form.winner.value;
    form.winner.replaceChildren(option("", "anyone"));
    if (!contest) return;
    const choices = [["a", contest.a], ["b", contest.b], ["tie", "a tie"]];
    if (prompts.some(prompt => verdict(prompt)?.[2].length)) choices.push(["flip", "the order: the judge changed its mind"]);
    form.winner.append(...choices.map(([value, text]) => option(value, text)));
    if (choices.some(([value]) => value === before)) form.winner.value = before;
  }

  function fits(prompt, text, who) {
    if (text && !words(prompt).includes(text)) return false;
    const told = verdict(prompt);
    return !who || Boolean(told) && (who === "flip" ? flips(told[2]) : told[0] === who);
  }

  function look() {
    const text = form.text.value.trim().toLowerCase(), who = form.winner.value, sort = form.sort.value;
    found = prompts.filter(prompt => fits(prompt, text, who));
    const sign = sort === "won" ? -1 : 1, known = prompt => verdict(prompt) ? sign * verdict(prompt)[1] : Infinity;
    if (sort !== "asked") {
      const keyed = found.map(prompt => [known(prompt), prompt]);
      found = keyed.sort((one, other) => one[0] === other[0] ? 0 : one[0] - other[0]).map(pair => pair[1]);
    }
    form.count.textContent = `${found.length.toLocaleString("en")} of ${prompts.length.toLocaleString("en")} prompts`;
    list.replaceChildren();
    shown = 0;
    show();
    if (list.firstChild && !text) list.firstChild.open = true;
  }

  function show() {
    list.append(...found.slice(shown, shown + PAGE).map(entry));
    shown = Math.min(shown + PAGE, found.length);
    if (!found.length) list.append(make("p", "none", "No prompt has all of this."));
    more.hidden = shown === found.length;
  }

  function entry(prompt) {
    const details = make("details", "example"), summary = make("summary"), told = verdict(prompt);
    const margin = told ? told[1] : null;
    const tone = margin > 0 ? "up" : margin < 0 ? "down" : "soft";
    summary.append(make("span", `gap ${tone}`, margin === null ? "–" : signed(margin)), make("span", "ask", prompt.prompt));
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(judged(prompt), answers(prompt));
    });
    return details;
  }

  function judged(prompt) {
    const lines = make("ul", "judged");
    for (const [place, [said, , orders]] of Object.entries(prompt.verdicts)) {
      const contest = contests[place], name = each => each ? SAID[each](contest) : "no verdict";
      const line = make("li", "", `${contest.a} against ${contest.b}, by ${contest.judge}: `);
      line.append(make("b", "", name(said)));
      for (let pair = 0; pair < orders.length; pair += 2)
        line.append(make("span", "soft", `; ${contest.a} first: ${name(orders[pair])}, ${contest.b} first: ${name(orders[pair + 1])}`));
      lines.append(line);
    }
    return lines;
  }

  function answers(prompt) {
    const grid = make("div", "answers");
    prompt.answers.forEach((given, place) => {
      const box = make("div", `answer ${models[place].colour}`), head = make("h4", "", models[place].name);
      const known = given.map(answer => answer[1]).filter(score => score !== null);
      const score = known.length ? plain(known.reduce((sum, each) => sum + each, 0) / known.length) : "no score";
      head.append(make("span", "", given.length ? score : "no answer"));
      const texts = make("div", "scroll");
      texts.tabIndex = 0;
      for (const [text, , cut] of given) {
        const paragraph = make("p", "", text);
        if (cut) paragraph.append(" ", make("span", "chip", "truncated"));
        texts.append(paragraph);
      }
      box.append(head, texts);
      grid.append(box);
    });
    return grid;
  }

  let waiting;
  form.addEventListener("submit", event => event.preventDefault());
  form.text.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(look, 120); });
  form.contest.addEventListener("change", () => { ask(); look(); });
  form.winner.addEventListener("change", look);
  form.sort.addEventListener("change", look);
  more.addEventListener("click", show);
  if (!contests.length) for (const name of ["contest", "winner", "sort"]) form[name].parentElement.hidden = true;
  if (!contests.length) form.sort.value = "asked";
  ask();
  look();
  at("some").remove();
  for (const element of [form, list]) element.hidden = false;
  document.documentElement.dataset.ready = "answers";
})();
