"""From exams to a page, each part made from the one before it.

read        examined, found, people, judged · ancestors, cost, funnel, gates
measured    statistics, families, agreement, habits · tables, changes, slices, distributions, benchmarks, chats, doubts
concluded   verdict: with the above this is report.json; compared has its own, of examined models of any runs
shown       sheets/ (tables) and figures/ (drawings), from report.json alone, in the shapes of sheet, svg and wording
written     page with header, trust, answers and examples; card, the same in Markdown; compared_page; a sweep's grid
"""
