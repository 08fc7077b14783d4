# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How pages look: on wide and narrow screens, light and dark, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c1f23; --quiet: #565d66; --back: #f6f7f9; --card: #ffffff; --line: #d9dde3;
  --link: #005a9c; --good: #1b7a3d; --fair: #7a5c00; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e8eb; --quiet: #a6adb7; --back: #15181c; --card: #1e2228; --line: #3a414b;
    --link: #7ab8f0; --good: #6fcf8e; --fair: #e3bd4f; --bad: #ff8a80;
  }
  figure img { filter: invert(0.88) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 0 0 0.6rem; }
h3 { font-size: 1rem; margin: 1.1rem 0 0.3rem; }
p, ul, ol { margin: 0.4rem 0; }
ul, ol { padding-left: 1.4rem; }
a { color: var(--link); }
main > section {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 1rem 1.2rem; margin: 1rem 0;
}
.verdict { border-left: 0.5rem solid var(--tone); }
.verdict h2 { color: var(--tone); font-size: 1.5rem; }
.reliable { --tone: var(--good); }
.corrected { --tone: var(--fair); }
.not-reliable { --tone: var(--bad); }
.lead { font-size: 1.1rem; font-weight: 600; }
.quiet, figcaption, footer { color: var(--quiet); font-size: 0.9rem; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.8rem;
  margin: 1rem 0;
}
.facts > div {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 0.7rem 0.9rem;
}
.facts dt { color: var(--quiet); font-size: 0.9rem; }
.facts dd { margin: 0.2rem 0 0; font-size: 0.9rem; }
.facts .value { font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts .value span { font-size: 0.85rem; font-weight: 400; white-space: nowrap; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; }
.scroll { overflow-x: auto; }
figure { margin: 0.8rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure img.wide { min-width: 544px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 600; }
.texts td, .texts thead th { text-align: left; white-space: normal; }
pre {
  background: var(--back); border: 1px solid var(--line); border-radius: 0.3rem; padding: 0.7rem;
  overflow-x: auto; font-size: 0.9rem;
}
code { font-family: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--link); }
details { margin: 0.6rem 0; }
@media print {
  :root {
    --text: #000000; --quiet: #444444; --back: #ffffff; --card: #ffffff; --line: #bbbbbb;
    --good: #1b7a3d; --fair: #7a5c00; --bad: #b3261e;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  main > section { border: none; padding: 0; break-inside: auto; }
  .verdict { padding-left: 0.8rem; border-left: 0.5rem solid var(--tone); }
  figure, .facts > div, tr { break-inside: avoid; }
  figure img, figure img.wide { min-width: 0; filter: none; }
  h2, h3, section > p { break-after: avoid; }
  details::details-content { content-visibility: visible; }
  .scroll { overflow: visible; }
}
"""
