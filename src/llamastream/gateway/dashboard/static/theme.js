// Before anything is drawn: the theme that was chosen, if one was.
"use strict";
try {
  const chosen = localStorage.getItem("llamastream-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch { /* storage is switched off: the system's theme it is */ }
