"""How a study's page looks: light and dark, narrow and wide, and on paper."""

CSS = """
:root{color-scheme:light dark;--bg:#fcfcfa;--ink:#1b1d1f;--soft:#5d646b;--line:#e4e4df;
--dot:#8b939b;--win:#0a6e6e;--homework:#b8590b;--bad:#a3324b;--card:#f3f3ee;--shade:10 110 110}
@media(prefers-color-scheme:dark){:root{--bg:#15181a;--ink:#e8e9e6;--soft:#9aa2a8;--line:#2c3135;
--dot:#7a838b;--win:#45c4bd;--homework:#f0a35c;--bad:#ef7d95;--card:#1d2124;
--shade:69 196 189}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:30px;line-height:1.2;margin:6px 0 10px;overflow-wrap:anywhere}
h2{font-size:20px;margin:0 0 4px}
section{margin-top:48px}
p{max-width:72ch;overflow-wrap:anywhere}
.kicker,.note,figcaption,small,caption{color:var(--soft);font-size:13px}
.kicker{margin:0}
.answer{margin:0 0 18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;
border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tiles div{box-shadow:0 0 0 1px var(--line);padding:14px 16px;display:flex;flex-direction:column}
.tiles b{font-size:22px;line-height:1.2}
.tiles span{font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));
gap:24px 28px}
.row{display:flex;flex-wrap:wrap;gap:24px 28px}
figure{margin:0;min-width:0;max-width:640px}
figcaption b{color:var(--ink)}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{fill:var(--ink);font-family:inherit}
.scroll{overflow:auto;max-height:520px;max-width:100%}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{position:sticky;top:0;background:var(--card);font-weight:600}
.sortable th[tabindex]{cursor:pointer}
[aria-sort=ascending]:after{content:" \\2191"}
[aria-sort=descending]:after{content:" \\2193"}
.l{text-align:left}
td.l{white-space:normal;min-width:7em}
.sortable td.l{min-width:16em}
caption{text-align:left;white-space:nowrap}
.heat td,.heat th{padding:6px 5px;text-align:center;font-weight:400}
.heat td[style]{background:rgb(var(--shade)/var(--heat))}
dl{display:grid;grid-template-columns:110px 1fr;gap:6px 16px;font-size:14px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--card);padding:14px 16px;border-radius:8px;overflow:auto;font-size:13px}
@media(max-width:600px){main{padding:24px 16px 60px}h1{font-size:24px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}}
@media print{:root{--bg:#fff;--ink:#000;--soft:#444;--line:#ccc;--dot:#777;--win:#0a6e6e;
--homework:#b8590b;--bad:#a3324b;--card:#fff;--shade:10 110 110}main{max-width:none;padding:0}
.scroll{max-height:none;overflow:visible}table{font-size:10px}th,td{padding:2px 4px}
td,th{white-space:normal}td.l,.sortable td.l{min-width:0}thead th{position:static}
figure,tr,.tiles,pre{break-inside:avoid}h2{break-after:avoid}
*{print-color-adjust:exact}}
"""
