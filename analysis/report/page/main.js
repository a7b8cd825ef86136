/* Puts the page together and opens its first sample. */
(() => {
  const THEMES = [
    ["", "as the system"],
    ["light", "light"],
    ["dark", "dark"],
  ];
  const main = document.getElementById("main");
  const message = document.getElementById("message");
  const heads = Dom.section(
    "heads",
    "Layers and heads",
    "How each head attends at the chosen step. A click chooses layer and head.",
    Dom.make("div", { class: "columns two" }, HeadGrid.node, HeadView.summary),
    HeadView.node,
  );
  const sections = [
    Overview.node,
    TokenView.node,
    heads,
    Timeline.node,
    Budgets.node,
    KeysValues.node,
    Tables.node,
    ...Documents.nodes,
  ];
  const indices = [...document.querySelectorAll('script[id^="sample-"]')].map((node) =>
    Number(node.id.slice("sample-".length)),
  );

  function look() {
    Ramps.prepare();
    State.announce(["look"]);
  }

  function choices() {
    const theme = Dom.choice(
      "Colours",
      THEMES,
      "",
      (value) => {
        if (value) document.documentElement.dataset.theme = value;
        else delete document.documentElement.dataset.theme;
        look();
      },
      { id: "theme" },
    );
    const sample = Dom.choice(
      "Sample",
      indices.map((index) => [index, String(index)]),
      indices[0],
      (value) => open(Number(value)),
      { id: "sample" },
    );
    Dom.replace(document.getElementById("page-choices"), indices.length > 1 ? sample.node : [], theme.node);
  }

  function links() {
    Dom.replace(
      document.getElementById("sections"),
      sections
        .filter((node) => !node.hidden)
        .map((node) => Dom.make("a", { href: `#${node.id}` }, node.querySelector("h2").textContent)),
    );
  }

  /* A token to begin with: the first that a head has evicted in the first event, so that its reason is seen. */
  function telling(sample) {
    for (let token = 0; token < Math.min(sample.seen(0), 1000); token++) {
      if (sample.fate(0, 0, token, 0) > 0) return token;
    }
    return 0;
  }

  async function open(index) {
    message.hidden = false;
    message.textContent = "Unpacking the data …";
    try {
      const sample = await Sample.read(index);
      const first = telling(sample);
      if (!State.values.sample) Dom.replace(main, message, sections);
      State.set({ sample, event: 0, layer: 0, head: -1, token: first, pinned: first });
      message.hidden = true;
      document.getElementById("subtitle").textContent = [
        sample.model.name,
        sample.policy ? `policy ${sample.policy.name}` : "full cache",
        `sample ${sample.index}`,
      ].join(" · ");
      requestAnimationFrame(() =>
        requestAnimationFrame(() => {
          links();
          document.documentElement.dataset.ready = String(index);
        }),
      );
    } catch (error) {
      message.textContent = `This page cannot show sample ${index}: ${error.message}. Is the browser of 2023 or newer?`;
      throw error;
    }
  }

  let resizing = null;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => State.values.sample && State.announce(["look"]), 120);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => State.values.sample && look());
  document.getElementById("footer").textContent =
    "Keys: , and . step through the events, p plays them; [ and ] change the layer, - and = the head; " +
    "arrow keys move in the text and in every map, Enter chooses. The page holds all of its data and uses no network.";
  Ramps.prepare();
  choices();
  open(indices[0]);
})();
