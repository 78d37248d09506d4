"""placeholder while integrating"""
def render_report(shown, *, generated_at): return "<html></html>"
def render_comparison(shows): return "<html></html>"
