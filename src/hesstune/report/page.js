document.documentElement.classList.add("js");
document.querySelectorAll("table[data-sort]").forEach(t=>t.querySelectorAll("thead th").forEach((h,i)=>{
const b=document.createElement("button");b.type="button";b.textContent=h.textContent;h.replaceChildren(b);let up=i>0;
b.onclick=()=>{up=!up;const v=r=>r.cells[i].dataset.v??r.cells[i].textContent.trim(),rows=[...t.tBodies[0].rows];
rows.sort((p,q)=>{const x=parseFloat(v(p)),y=parseFloat(v(q)),a=isNaN(x),c=isNaN(y);
if(i==0||a&&c)return(up?1:-1)*v(p).localeCompare(v(q));if(a||c)return a?1:-1;return up?x-y:y-x});
t.querySelectorAll("thead th").forEach(o=>o.removeAttribute("aria-sort"));h.setAttribute("aria-sort",up?"ascending":"descending");t.tBodies[0].append(...rows)}}));
document.querySelectorAll("input[data-filter]").forEach(f=>f.oninput=()=>{const w=f.value.toLowerCase();
document.querySelectorAll("#"+f.dataset.filter+" [data-row]").forEach(r=>{r.hidden=!r.textContent.toLowerCase().includes(w)})});
