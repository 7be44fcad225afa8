// Hidden inputs of the colour scheme leave the order of the keyboard; wide tables can be scrolled by it.
const accessible = () => {
  document.querySelectorAll("input.md-option").forEach((input) => { input.tabIndex = -1; });
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => { table.tabIndex = 0; });
};
accessible();
new MutationObserver(accessible).observe(document.body, { childList: true, subtree: true });
