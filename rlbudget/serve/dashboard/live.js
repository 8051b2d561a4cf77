"use strict";
// Asks for the live part of the page again every few seconds, while somebody looks at it.
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const again = async () => {
    const held = live.contains(document.activeElement) || document.hidden;
    if (!held) {
      try {
        const answer = await fetch(live.dataset.live, { credentials: "same-origin" });
        if (answer.ok) live.innerHTML = await answer.text();
        live.classList.toggle("stale", !answer.ok);
      } catch {
        live.classList.add("stale");
      }
    }
    setTimeout(again, 3000);
  };
  setTimeout(again, 3000);
})();
